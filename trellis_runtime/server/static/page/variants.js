// Several seeds of one picture side by side: turned together, one of them picked.
import { address, json } from "./api.js";
import { $, h, show } from "./dom.js";
import { fault } from "./words.js";

let tiles = new Map();  // job id -> its tile

export const ids = () => [...tiles.keys()];
export const isOpen = () => tiles.size > 0;
export const running = () => [...tiles.values()].filter((tile) => tile.state === "running").map((tile) => tile.id);
export const progress = () => [...tiles.values()].reduce((sum, tile) => sum + tile.progress, 0) / tiles.size;

// Shows a group of jobs; those that are shown already stay as they are.
export function open(group, pick) {
  const before = tiles;
  tiles = new Map(group.map((id, number) => [id, before.get(id) || tile(id, number + 1, pick)]));
  for (const [id, one] of before) if (!tiles.has(id)) one.element.remove();
  for (const one of tiles.values()) if (!one.element.parentNode) $("side").append(one.element);
  show($("side"), true);
}

export function close() {
  tiles = new Map();
  $("side").replaceChildren();  // viewers hold the card's memory
  show($("side"), false);
}

function tile(id, number, pick) {
  const view = h("div", { class: "view" }), words = h("span", { class: "note" }, "waiting");
  const button = h("button", { type: "button", disabled: true, "aria-label": `Pick variant ${number}`, onclick: () => pick(id) }, "Pick this one");
  return { id, number, view, words, button, state: "running", progress: 0,
    element: h("figure", { class: "variant" }, view, h("figcaption", {}, words, button)) };
}

// Takes what a list of jobs says; a model is loaded once its job is done.
export async function told(jobs) {
  for (const job of jobs) {
    const one = tiles.get(job.id);
    if (!one || one.state !== "running") continue;
    [one.state, one.progress] = [job.state, job.state === "running" ? job.progress : 1];
    if (job.state === "running") {
      one.words.textContent = job.progress ? `${Math.round(job.progress * 100)} %` : "waiting";
      if (job.input && !one.view.firstChild) one.view.append(h("img", { src: await address(job.input), alt: "" }));
    } else await ended(one);
  }
}

async function ended(one) {
  one.button.disabled = one.state === "cancelled";
  if (one.state === "cancelled") { one.words.textContent = "cancelled"; return; }
  const job = await json(`/jobs/${one.id}`);
  if (one.state === "failed") {
    one.words.textContent = fault(job.answer || {}).sentence;
    one.button.textContent = "What would help";
    return;
  }
  one.words.textContent = `seed ${job.answer.seed}${job.answer.warnings?.length ? ", has warnings" : ""}`;
  const model = job.files.find((file) => file.name === "model.glb");
  if (model) one.view.replaceChildren(viewer(await address(model.url), `variant ${one.number}, which can be turned`));
}

function viewer(src, alt) {
  const made = h("model-viewer", { alt, src, "camera-controls": true, "touch-action": "pan-y", "shadow-intensity": "1",
    "environment-image": "neutral", "interaction-prompt": "none", loading: "eager" });
  made.addEventListener("camera-change", (event) => {
    if (event.detail.source !== "user-interaction") return;
    for (const other of $("side").querySelectorAll("model-viewer")) {
      if (other === made) continue;
      other.cameraOrbit = made.getCameraOrbit().toString();
      other.fieldOfView = `${made.getFieldOfView()}deg`;
      other.jumpCameraToGoal();
    }
  });
  return made;
}
