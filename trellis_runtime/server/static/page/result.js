// What became of a job: banner, files, numbers, the same job by program; or what went wrong.
import { address, signedIn } from "./api.js";
import { $, copy, h, show } from "./dom.js";
import { bytes, count, fault, FILES, fileTitle, plain, REMEDIES, seconds } from "./words.js";

// A finished job as it is shown of each of its models: itself, or each variant in its place.
export function modelsOf(job) {
  if (job.state !== "done" || !job.answer.variants) return [job];
  return job.answer.variants.map((variant) => ({ ...job, variant: variant.name, answer: { ...job.answer, ...variant },
    files: filesOf(job.files || [], `${variant.name}-`) }));
}

// Those of one variant, by the names that they would have alone; the answer is of all.
const filesOf = (files, prefix) => files.filter((file) => file.name.startsWith(prefix) || file.name === "answer.json")
  .map((file) => ({ ...file, name: file.name.replace(prefix, "") }));

// A button for each variant; `pick` shows one. What failed is told in its place.
export function showSeeds(models, shown, pick) {
  show($("seeds"), Boolean(shown.variant));
  $("seeds").replaceChildren(...models.filter((model) => model.variant).map((model) => (model.answer.error
    ? h("p", { class: "note" }, `Seed ${model.answer.seed} could not be made: ${model.answer.error.text}`)
    : h("button", { type: "button", "aria-pressed": String(model.variant === shown.variant), onclick: () => pick(model) }, `Seed ${model.answer.seed}`))));
}

export function banner(answer) {
  const files = answer.files || [];
  const warnings = (answer.warnings || []).map((warning) => warning.text)
    .concat(files.flatMap((file) => (file.warnings || []).map((warning) => `${titleOf(file)}: ${warning.text}`)))
    .concat(files.filter((file) => file.error).map((file) => `${titleOf(file)} could not be made`))
    .concat((answer.variants || []).filter((variant) => variant.error).map((variant) => `seed ${variant.seed} could not be made`));
  const given = answer.degradation;
  if (given.level === 0) {
    return warnings.length ? ["amber", `Look at it before you use it: ${warnings.join("; ")}.`] : ["green", "You got what you asked for."];
  }
  const changed = Object.keys(given.requested).filter((k) => JSON.stringify(given.requested[k]) !== JSON.stringify(given.effective[k]));
  const what = given.lossless ? "Memory was short; nothing of the result was given up."
    : `Memory was short. Asked and given: ${changed.map((k) => `${plain(k)} ${given.requested[k]} → ${given.effective[k]}`).join(", ")}.`;
  const noted = warnings.length ? ` Look at it: ${warnings.join("; ")}.` : "";
  return [given.lossless && !warnings.length ? "green" : given.lossless ? "amber" : "red", what + noted];
}

function numbers(answer) {
  const { mesh, texture, timings } = answer;
  const total = Object.values(timings).reduce((sum, value) => sum + value, 0);
  return {
    engine: answer.engine.name + (answer.engine.synthetic ? " (random weights)" : ""),
    seed: answer.seed,
    mesh: `${count(mesh.faces, "face")}, ${count(mesh.vertices, "vertex", "vertices")}`,
    texture: texture.size ? `${texture.size} px, ${texture.format}` : "none",
    "given up": answer.degradation.level ? `level ${answer.degradation.level}, ${plain(answer.degradation.rung)}` : "nothing",
    time: `${seconds(total)}: ${Object.entries(timings).map(([k, v]) => `${plain(k)} ${v.toFixed(1)}`).join(", ")}`,
    ...(answer.vram ? { "card memory": bytes(answer.vram.peak_bytes) } : {}),
  };
}

// Of a variant the file is called as if it were alone: it is shown so.
const titleOf = (file) => fileTitle(file.file_name.replace(/^v[0-7]-/, ""));

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function codes(job) {
  const origin = location.origin;
  const { seeds: _seeds, variants: _variants, ...asked } = job.request;  // one model is shown
  const settings = asked.finish_of ? asked : { ...asked, seed: job.answer.seed };
  const target = job.endpoint ? `https://api.runpod.ai/v2/${job.endpoint}/runsync` : `${origin}/generate`;
  const key = job.endpoint ? "RUNPOD_API_KEY" : signedIn() ? "TOKEN" : null;
  if (asked.finish_of) return codesWithoutPicture(settings, target, key);
  const rest = JSON.stringify({ input: settings }).slice('{"input":{'.length);
  const picture = job.input ? `${origin}${job.input}` : "picture.png";
  const read = job.input ? `curl -s ${key && !job.endpoint ? `-H "Authorization: Bearer $${key}" ` : ""}${quoted(picture)}` : "cat picture.png";
  const auth = key ? ` -H "Authorization: Bearer $${key}"` : "";
  const python = (value) => JSON.stringify(value).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");
  return {
    curl: `{ printf '{"input":{"image":"'; ${read} | base64 | tr -d '\\n'; printf '%s' ${quoted(`",${rest}`)}; } |\n  curl -s ${quoted(target)} -H 'Content-Type: application/json'${auth} -d @-\n`,
    python: `import base64, json, os, urllib.request\n\nheaders = {"Content-Type": "application/json"${key ? `, "Authorization": "Bearer " + os.environ["${key}"]` : ""}}\n${job.input
      ? `picture = urllib.request.urlopen(urllib.request.Request("${picture}", headers=headers)).read()` : 'picture = open("picture.png", "rb").read()'}\n`
      + `job = ${python(settings)} | {"image": base64.b64encode(picture).decode()}\n`
      + `request = urllib.request.Request("${target}", json.dumps({"input": job}).encode(), headers)\n`
      + "answer = json.load(urllib.request.urlopen(request))\nprint(answer)\n",
    javascript: `const headers = { "Content-Type": "application/json"${key ? `, Authorization: \`Bearer \${process.env.${key}}\`` : ""} };\n${job.input
      ? `const picture = await (await fetch("${picture}", { headers })).arrayBuffer();` : 'const picture = await (await import("node:fs/promises")).readFile("picture.png");'}\n`
      + `const input = { ...${JSON.stringify(settings)}, image: Buffer.from(picture).toString("base64") };\n`
      + `const response = await fetch("${target}", { method: "POST", headers, body: JSON.stringify({ input }) });\nconsole.log(await response.json());\n`,
  };
}

// A job that finishes kept latents has no picture to send.
function codesWithoutPicture(settings, target, key) {
  const body = JSON.stringify({ input: settings });
  return {
    curl: `curl -s ${quoted(target)} -H 'Content-Type: application/json'${key ? ` -H "Authorization: Bearer $${key}"` : ""} -d ${quoted(body)}\n`,
    python: `import json, os, urllib.request\n\nheaders = {"Content-Type": "application/json"${key ? `, "Authorization": "Bearer " + os.environ["${key}"]` : ""}}\n`
      + `request = urllib.request.Request("${target}", ${JSON.stringify(body)}.encode(), headers)\n`
      + "answer = json.load(urllib.request.urlopen(request))\nprint(answer)\n",
    javascript: `const headers = { "Content-Type": "application/json"${key ? `, Authorization: \`Bearer \${process.env.${key}}\`` : ""} };\n`
      + `const response = await fetch("${target}", { method: "POST", headers, body: JSON.stringify(${body}) });\nconsole.log(await response.json());\n`,
  };
}

// The model first, its numbers last, what a caller asked for besides in between.
const ORDER = Object.keys(FILES);
const rank = (file) => (ORDER.includes(file.name) ? ORDER.indexOf(file.name) : ORDER.indexOf("preview.png") - 0.5);

// A file that could not be made takes nothing else with it; it is told where it would have been.
const notMade = (job) => (job.answer.files || []).filter((file) => file.error)
  .map((file) => h("li", { class: "bad" }, titleOf(file), " ", h("small", {}, file.error.text)));

async function links(job) {
  const files = [...(job.files || [])].sort((a, b) => rank(a) - rank(b));
  return Promise.all(files.map(async (file) => {
    const link = h("a", { href: await address(file.url), download: `${job.id}-${job.variant ? `${job.variant}-` : ""}${file.name}` }, fileTitle(file.name));
    return h("li", {}, link, " ", h("small", {}, bytes(file.bytes)));
  }).concat(notMade(job)));
}

export async function showDone(job) {
  const [colour, words] = banner(job.answer);
  show($("inspector"), true);
  $("words").className = `banner ${colour}`;
  $("words").textContent = words;
  $("numbers").tBodies[0].replaceChildren(...Object.entries(numbers(job.answer)).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, String(value)))));
  $("files").replaceChildren(...await links(job));
  const programs = codes(job);
  const tabs = [...document.querySelectorAll("[data-code]")];
  const open = (tab) => {
    for (const other of tabs) other.setAttribute("aria-selected", String(other === tab));
    $("code").setAttribute("aria-labelledby", tab.id);
    $("code").textContent = programs[tab.dataset.code];
  };
  for (const tab of tabs) tab.onclick = () => open(tab);
  open(tabs[0]);
  $("copy").onclick = () => copy($("code").textContent);
}

export function showFailed(job, remedies) {
  const told = fault(job.answer || {});
  show($("failed"), true);
  $("failed-sentence").textContent = told.sentence;
  $("failed-detail").textContent = told.detail;
  $("failed-code").textContent = `${told.code}, job ${job.id}`;
  $("remedy").textContent = REMEDIES[told.remedy];
  $("remedy").onclick = () => remedies[told.remedy]();
}
