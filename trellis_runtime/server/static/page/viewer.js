// The viewer over the stage: shading, maps, camera, light, comparison, pictures of it.
import { address } from "./api.js";
import { pair } from "./compare.js";
import { $, press, show, toast } from "./dom.js";
import { encode } from "./picture.js";
import { plain } from "./words.js";

const viewer = () => $("viewer");
// model-viewer has no switch for shading; its three.js scene hangs on a symbol.
const scene = () => {
  const key = Object.getOwnPropertySymbols(viewer()).find((s) => s.description === "scene");
  return key ? viewer()[key] : null;
};

// Draco's decoder would come from elsewhere, which the page refuses.
const element = customElements.get("model-viewer");
if (element) element.meshoptDecoderLocation = "/static/page/meshopt.js";

let job = null;
let meshes = [];

export async function open(shown, files) {
  job = shown;
  closeOverlays();
  viewer().src = files["model.glb"] ? await address(files["model.glb"]) : "";
  viewer().poster = files["preview.png"] ? await address(files["preview.png"]) : "";
  press([...document.querySelectorAll("[data-view]")], document.querySelector("[data-view=textured]"));
  viewer().iosSrc = files["usdz.usdz"] ? await address(files["usdz.usdz"]) : null;  // else made in the browser
  show($("compare-open"), Boolean(job.input));
}

async function compare() {
  for (const side of ["left", "right"]) $(`compare-${side}`).removeAttribute("src");
  slide();
  only($("compare"));
  $("compare").setAttribute("aria-busy", "true");
  try {
    const [left, right] = await pair(job, front);
    for (const [side, blob] of [["left", left], ["right", right]]) {
      URL.revokeObjectURL($(`compare-${side}`).src);
      $(`compare-${side}`).src = URL.createObjectURL(blob);
    }
  } catch (err) {
    closeOverlays();
    toast(err.message);
  } finally { $("compare").removeAttribute("aria-busy"); }
}

// Waits until what was asked for last is drawn: a picture is taken of the canvas, and a slow machine
// may take seconds for a frame. Not for ever, as a hand may be turning the model.
async function drawn() {
  for (let frame = 0, still = 0; frame < 300 && still < 3; frame += 1) {
    await new Promise(requestAnimationFrame);
    still = scene()?.shouldRender?.() ? 0 : still + 1;
  }
}

// What the viewer shows, as a PNG. Its own toBlob cuts a picture at rest, which is drawn in full, by
// the smaller scale that a slow machine draws moving ones at.
async function picture() {
  await drawn();
  const whole = new Image();
  whole.src = viewer().toDataURL("image/png");
  await whole.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(whole.width, Math.round(scene().width * devicePixelRatio));
  canvas.height = Math.min(whole.height, Math.round(scene().height * devicePixelRatio));
  canvas.getContext("2d").drawImage(whole, 0, 0);
  return encode(canvas, "image/png");
}

// The model from the front, without its shadow; the camera then is where it was.
async function front() {
  const before = viewer().getCameraOrbit().toString();
  const look = async (orbit, shadow) => {
    viewer().cameraOrbit = orbit;
    viewer().shadowIntensity = shadow;
    viewer().jumpCameraToGoal();
    await viewer().updateComplete;
  };
  await look("0deg 90deg auto", 0);
  try {
    return await picture();
  } finally { await look(before, 1); }
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
    const faces = (mesh.node.geometry.index ?? mesh.node.geometry.attributes.position).count / 3;
    mesh.lines.material.opacity = Math.min(0.5, Math.max(0.14, 45 / Math.sqrt(faces)));  // many lines would hide the shape
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

// Even light from all around, or a studio's, which comes from one side.
function turnLight() {
  const from = $("light").value;
  viewer().environmentImage = from === "" ? "neutral" : "legacy";
  const lit = scene();
  if (lit?.environmentRotation) lit.environmentRotation.y = Number(from) / 180 * Math.PI;
  lit?.queueRender?.();
}

function slide() {
  const share = Number($("compare-at").value);
  $("compare-left").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  $("compare-right").style.clipPath = `inset(0 0 0 ${share}%)`;
}

let opener = null;  // what has the focus again once an overlay is closed

function only(overlay) {
  closeOverlays();
  opener = document.activeElement;
  show(overlay, true);
  overlay.querySelector("button").focus();
}

export function closeOverlays() {
  show($("overlay"), false);
  show($("compare"), false);
}

function leave() {
  const was = [$("overlay"), $("compare")].some((overlay) => !overlay.hidden);
  closeOverlays();
  if (was) opener?.focus();
}

async function showMap(name) {
  try {
    $("map").src = await address(`/jobs/${job.id}/maps/${name}${job.variant ? `?variant=${job.variant}` : ""}`);
    $("map").alt = `${plain(name)} map`;
    only($("overlay"));
  } catch (err) { toast(err.message); }
}

async function screenshot() {
  const blob = await picture();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${job.id}.png`;
  link.click();
}

export function set() {
  viewer().addEventListener("load", () => {
    collect();
    turnLight();
    show($("ar"), viewer().canActivateAR);
  });
  const views = [...document.querySelectorAll("[data-view]")];
  for (const button of views) button.onclick = () => { closeOverlays(); press(views, button); shade(button.dataset.view); };
  for (const button of document.querySelectorAll("[data-map]")) button.onclick = () => showMap(button.dataset.map);
  for (const button of document.querySelectorAll("[data-orbit]")) {
    button.onclick = () => { closeOverlays(); viewer().cameraOrbit = `${button.dataset.orbit} auto`; };
  }
  $("exposure").oninput = () => { viewer().exposure = Number($("exposure").value) / 100; };
  $("light").onchange = turnLight;
  $("compare-open").onclick = compare;
  $("ar").onclick = () => viewer().activateAR();
  $("overlay-close").onclick = $("compare-close").onclick = leave;
  $("compare-at").oninput = slide;
  $("screenshot").onclick = screenshot;
  $("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
  viewer().addEventListener("error", () => toast("This page cannot show the model's file; it can be downloaded."));
}
