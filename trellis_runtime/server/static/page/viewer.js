// The viewer over the stage: shading, maps, camera, light, comparison, pictures of it.
import { address } from "./api.js";
import { $, press, show, toast } from "./dom.js";
import { plain } from "./words.js";

const viewer = () => $("viewer");
// model-viewer has no switch for shading; its three.js scene hangs on a symbol.
const scene = () => {
  const key = Object.getOwnPropertySymbols(viewer()).find((s) => s.description === "scene");
  return key ? viewer()[key] : null;
};

let job = null;
let meshes = [];

export async function open(shown, files) {
  job = shown;
  closeOverlays();
  viewer().src = files["model.glb"] ? await address(files["model.glb"]) : "";
  viewer().poster = files["preview.png"] ? await address(files["preview.png"]) : "";
  press([...document.querySelectorAll("[data-view]")], document.querySelector("[data-view=textured]"));
  show($("compare-open"), Boolean(job.input && files["preview.png"]));
  $("compare-open").onclick = async () => {
    $("compare-left").src = await address(job.input);
    $("compare-right").src = await address(files["preview.png"]);
    slide();
    only($("compare"));
  };
}

function collect() {
  meshes = [];
  scene()?.traverse?.((node) => {
    if (node.isMesh && node.geometry?.attributes?.normal && !node.userData.noHit && node.material?.isMeshStandardMaterial) {
      meshes.push({ node, textured: node.material, lines: null });
    }
  });
}

function clay(material) {
  const grey = material.clone();
  for (const map of ["map", "metalnessMap", "roughnessMap", "normalMap", "aoMap"]) grey[map] = null;
  grey.color.setRGB(0.4, 0.385, 0.36);
  grey.metalness = 0;
  grey.roughness = 0.85;
  grey.transparent = false;
  return grey;
}

// Normals as colours: the shader's own normal, in the camera's axes, in place of its light.
function normals(material) {
  const coloured = clay(material);
  coloured.onBeforeCompile = (shader) => {
    shader.fragmentShader = shader.fragmentShader.replace(
      "#include <dithering_fragment>",
      "#include <dithering_fragment>\ngl_FragColor = vec4(normalize(normal) * 0.5 + 0.5, 1.0);",
    );
  };
  coloured.customProgramCacheKey = () => "normals";
  return coloured;
}

function lined(mesh) {
  const base = clay(mesh.textured);
  base.polygonOffset = true;
  base.polygonOffsetFactor = base.polygonOffsetUnits = 1;
  base.flatShading = true;
  if (!mesh.lines) {
    mesh.lines = mesh.node.clone(false);
    mesh.lines.material = clay(mesh.textured);
    mesh.lines.material.wireframe = true;
    mesh.lines.material.color.setRGB(0.02, 0.08, 0.25);
    mesh.lines.material.transparent = true;
    mesh.lines.material.opacity = 0.4;
    mesh.lines.userData.noHit = true;
    mesh.node.parent.add(mesh.lines);
  }
  return base;
}

function shade(name) {
  if (!meshes.length || !meshes[0].node.parent) collect();
  for (const mesh of meshes) {
    mesh.node.material = { textured: () => mesh.textured, clay: () => clay(mesh.textured), normals: () => normals(mesh.textured), wireframe: () => lined(mesh) }[name]();
    if (mesh.lines) mesh.lines.visible = name === "wireframe";
  }
  scene()?.queueRender?.();
}

function slide() {
  const share = Number($("compare-at").value);
  $("compare-left").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  $("compare-right").style.clipPath = `inset(0 0 0 ${share}%)`;
}

function only(overlay) {
  closeOverlays();
  show(overlay, true);
  overlay.querySelector("button").focus();
}

export function closeOverlays() {
  show($("overlay"), false);
  show($("compare"), false);
}

async function showMap(name) {
  try {
    $("map").src = await address(`/jobs/${job.id}/maps/${name}`);
    $("map").alt = `${plain(name)} map`;
    only($("overlay"));
  } catch (err) { toast(err.message); }
}

async function screenshot() {
  const blob = await viewer().toBlob({ idealAspect: false });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${job.id}.png`;
  link.click();
}

export function set() {
  viewer().addEventListener("load", collect);
  const views = [...document.querySelectorAll("[data-view]")];
  for (const button of views) button.onclick = () => { closeOverlays(); press(views, button); shade(button.dataset.view); };
  for (const button of document.querySelectorAll("[data-map]")) button.onclick = () => showMap(button.dataset.map);
  for (const button of document.querySelectorAll("[data-orbit]")) {
    button.onclick = () => { closeOverlays(); viewer().cameraOrbit = `${button.dataset.orbit} auto`; };
  }
  $("light").oninput = () => { viewer().exposure = Number($("light").value) / 100; };
  $("overlay-close").onclick = $("compare-close").onclick = closeOverlays;
  $("compare-at").oninput = slide;
  $("screenshot").onclick = screenshot;
  $("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closeOverlays(); });
}
