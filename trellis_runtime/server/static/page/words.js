// What is said to people: stages, numbers, faults.
export const STEPS = [
  ["Reading the picture", ["queued", "image"]],
  ["Finding the object", ["condition"]],
  ["Building its shape", ["structure", "shape"]],
  ["Painting it", ["texture"]],
  ["Making the mesh", ["decode", "bake", "finish", "latents"]],
  ["Saving the model", ["export", "preview", "store"]],
];
export const stepOf = (stage) => Math.max(0, STEPS.findIndex(([, stages]) => stages.includes(stage.split(" ")[0])));

export function bytes(count) {
  if (count === null || count === undefined) return "";
  if (count < 1e6) return `${Math.max(1, Math.round(count / 1e3))} kB`;
  return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}

export function seconds(count) {
  if (count < 10) return `${count.toFixed(1)} s`;
  if (count < 120) return `${Math.round(count)} s`;
  return `${Math.floor(count / 60)} min ${Math.round(count % 60)} s`;
}

export function count(value, one, many = `${one}s`) {
  return `${Number(value).toLocaleString("en")} ${value === 1 ? one : many}`;
}

export const plain = (name) => name.replaceAll("_", " ");

export const PRESETS = {
  fast: ["Fast", "A quick look, or many small models"],
  balanced: ["Balanced", "The usual choice"],
  game_asset: ["Game asset", "Most detail, largest textures"],
};

export const LABELS = { maps: "Textures" };

export const FORMATS = {
  glb: "The model, for the web, engines and most programs.", usdz: "For iPhone, iPad and Vision: Quick Look.",
  obj: "For older programs: a zip with OBJ, MTL and textures.", stl: "For printers: one closed surface.",
  "3mf": "For printers: one closed surface, with its unit.",
  ply: "For scanners and researchers: colours at the points.", maps: "The textures as pictures, in a zip.",
};

export const FILES = {
  "model.glb": "Model (GLB)", "usdz.usdz": "Quick Look (USDZ)", "obj.zip": "Wavefront (OBJ, zipped)",
  "stl.stl": "For printing (STL)", "3mf.3mf": "For printing (3MF)", "ply.ply": "Coloured points (PLY)", "maps.zip": "Textures (pictures, zipped)", "preview.png": "Rendered picture",
  "thumbnail.webp": "Small picture", "turntable.webp": "Turntable", "cutout.png": "Cut-out", "answer.json": "All numbers (JSON)",
};

// Of a file that a caller asked for besides: what the request itself names, else its own name.
export function fileTitle(name) {
  if (/^lod\d\.glb$/.test(name)) return `Level of detail ${name[3]} (GLB)`;
  return FILES[name] || name.replace(/^hulls\.glb$/, "Convex hulls (GLB)");
}

const KINDS = {
  not_found: "This job is not here any more.",
  image_rejected: "This picture could not be used.",
  invalid_input: "One of the settings is not possible.",
  url_refused: "That address is not visited.",
  fetch_failed: "Something elsewhere did not answer as it should.",
  worker_busy: "The queue is full just now.",
  worker_stopping: "This server is stopping.",
  disk_full: "This machine's disk is nearly full.",
  out_of_vram: "The card has too little memory for these settings.",
  mesh_rejected: "What came out is no model worth keeping.",
  glb_rejected: "The finished file did not pass its checks.",
  storage_failed: "The result could not be stored.",
  answer_too_large: "The result is too large for this delivery.",
  deadline_exceeded: "The job's time was over before it was done.",
  engine_fault: "The engine had a fault; this worker has to be replaced.",
  endpoint_failed: "The endpoint failed the job.",
  stage_failed: "This picture led to something that could not be finished.",
  not_finite: "The model's numbers ran away on this one.",
  file_rejected: "A file of that format could not be written.",
  latents_gone: "What was kept of that job is not here.",
  latents_expired: "What was kept of that job is over its time.",
  latents_foreign: "What was kept of that job is of another version.",
  latents_damaged: "What was kept of that job cannot be used.",
};

// A sentence for people, the server's own words without their code, and the one thing to try.
export function fault(answer) {
  const code = answer.code || "internal";
  const detail = (answer.error || "").replace(/^[a-z0-9_]+: /, "");
  return { code, detail, sentence: KINDS[code] || "Something went wrong.", remedy: remedy(code, detail, answer) };
}

function remedy(code, detail, answer) {
  if (code === "image_rejected") {
    if (/covers (9\d|100)/.test(detail)) return "whole";
    return /foreground|object/.test(detail) ? "mark" : "choose";
  }
  if (["mesh_rejected", "glb_rejected", "not_finite", "stage_failed"].includes(code)) return "seed";
  if (code === "out_of_vram") return "fast";
  if (code === "url_refused") return "choose";
  if (code === "invalid_input") return "settings";
  return answer.retryable === false ? "choose" : "again";
}

export const REMEDIES = {
  whole: "Use the whole picture", mark: "Mark the object", seed: "Try another seed",
  choose: "Choose another picture", fast: "Use the fast preset", settings: "Look at the settings",
  again: "Try again",
};
