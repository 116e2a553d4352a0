// The page: one form, one running job, one result. Text is set as text, never as markup.
const STAGES = ["image", "condition", "structure", "shape", "texture", "decode", "bake", "export", "preview", "store"];
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
let picked = null;
let current = null;

async function api(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error || `the server answered ${response.status}`);
}

function asBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] || "");
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(file);
  });
}

function pick(file) {
  if (!file) return;
  picked = file;
  $("hint").textContent = file.name;
  const url = URL.createObjectURL(file);
  $("shown").onload = () => { $("shown").hidden = false; };
  $("shown").onerror = () => { $("shown").hidden = true; };  // HEIC: the worker reads it all the same
  $("shown").src = url;
  $("shown").alt = `the picture ${file.name}`;
  $("go").disabled = false;
  say(null);
}

function say(message) {
  $("error").hidden = !message;
  $("error").textContent = message || "";
}

function showProgress(job) {
  const running = job !== null && job.state === "running";
  for (const id of ["stages", "bar", "cancel"]) $(id).hidden = !running;
  $("go").disabled = running || !picked;
  if (!running) return;
  const at = STAGES.indexOf(job.stage);
  $("stages").replaceChildren(...STAGES.map((name, i) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.className = i < at ? "past" : i === at ? "now" : "";
    if (i === at) item.setAttribute("aria-current", "step");
    return item;
  }));
  $("bar").value = job.progress;
}

async function follow(id) {
  // fetch, not EventSource: it can carry a token.
  const response = await api(`/jobs/${id}/events`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) update(JSON.parse(part.slice(6)));
  }
}

function update(job) {
  current = job;
  showProgress(job);
  if (job.state === "done") { showResult(job); loadHistory(); }
  if (job.state === "failed") say(job.answer.error);
  if (job.state === "cancelled") say("The job was cancelled.");
}

const link = (job, name) => address(`/jobs/${job.id}/files/${name}`);

async function address(path) {
  if (!token) return path;  // neither <img> nor the viewer can carry one
  return URL.createObjectURL(await (await api(path)).blob());
}

function inWords(answer) {
  const warnings = answer.warnings || [];
  const noted = warnings.length
    ? `Look at it before you use it: ${warnings.map((w) => w.text).join("; ")}.` : "";
  const given = answer.degradation;
  if (given.level === 0) return noted || "You got what you asked for.";
  const wanted = given.requested, got = given.effective;
  const changed = Object.keys(wanted).filter((k) => JSON.stringify(wanted[k]) !== JSON.stringify(got[k]));
  const why = given.attempts.map((a) => `${a.stage} ran out of memory at ${a.rung}`).join("; ");
  const what = given.lossless ? "Memory was short; nothing of the result was given up."
    : `Memory was short. Asked and given: ${changed.map((k) => `${k} ${wanted[k]} → ${got[k]}`).join(", ")}.`;
  return `${what} Rung ${given.level}, ${given.rung}. ${why} ${noted}`.trim();
}

function numbers(answer) {
  const mesh = answer.mesh;
  return {
    engine: answer.engine.name + (answer.engine.synthetic ? " (random weights)" : ""),
    seed: answer.seed,
    "vertices, faces": `${mesh.vertices.toLocaleString()}, ${mesh.faces.toLocaleString()}`,
    texture: answer.texture.size ? `${answer.texture.size} px, ${answer.texture.format}` : "none",
    file: `${(answer.artifact.bytes / 1e6).toFixed(1)} MB`,
    seconds: Object.entries(answer.timings).map(([k, v]) => `${k} ${v.toFixed(1)}`).join(", "),
    ...(mesh.warnings.length ? { warnings: mesh.warnings.join("; ") } : {}),
  };
}

async function showResult(job) {
  const answer = job.answer;
  $("result").hidden = false;
  setView("model");
  const glb = await link(job, "model.glb");
  $("viewer").src = glb;
  $("viewer").poster = answer.preview ? await link(job, "preview.png") : "";
  $("glb").href = glb;
  $("glb").download = `${job.id}.glb`;
  $("json").href = await link(job, "answer.json");
  $("turn").hidden = !answer.turntable;
  if (answer.turntable) $("turn").href = await link(job, "turntable.webp");
  $("words").textContent = inWords(answer);
  $("numbers").tBodies[0].replaceChildren(...Object.entries(numbers(answer)).map(([name, value]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    const cell = document.createElement("td");
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
  const input = { ...job.request, seed: answer.seed, image: "BASE64_OF_THE_PICTURE" };
  $("curl").textContent = "curl -s https://api.runpod.ai/v2/ENDPOINT_ID/runsync \\\n" +
    "  -H \"Authorization: Bearer $RUNPOD_API_KEY\" -H 'Content-Type: application/json' \\\n" +
    `  -d '${JSON.stringify({ input })}'`;
}

function wireframe(on) {
  // model-viewer has no switch for it; its scene hangs on a symbol.
  const viewer = $("viewer");
  const key = Object.getOwnPropertySymbols(viewer).find((s) => s.description === "scene");
  if (!key) return;
  viewer[key].traverse?.((node) => { if (node.material) node.material.wireframe = on; });
  viewer[key].queueRender?.();
}

async function setView(name) {
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === name));
  }
  const isMap = !["model", "wireframe"].includes(name);
  $("viewer").hidden = isMap;
  $("map").hidden = !isMap;
  wireframe(name === "wireframe");
  if (!isMap || !current) return;
  const path = `/jobs/${current.id}/maps/${name}`;
  $("map").alt = `${name.replace("_", " ")} map`;
  try {
    $("map").src = URL.createObjectURL(await (await api(path)).blob());
  } catch (err) { say(err.message); }
}

async function loadHistory() {
  const jobs = (await (await api("/jobs")).json()).filter((job) => job.state === "done");
  if (!jobs.length) return;
  $("history").replaceChildren(...await Promise.all(jobs.map(async (job) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    if (job.thumbnail) {
      const image = document.createElement("img");
      image.src = await address(job.thumbnail);
      image.alt = "";
      button.append(image);
    }
    const text = document.createElement("span");
    text.textContent = `${new Date(job.created * 1000).toLocaleString()}, ${job.summary.faces.toLocaleString()} faces`;
    button.append(text);
    button.onclick = async () => {
      say(null);
      current = await (await api(`/jobs/${job.id}`)).json();
      showResult(current);
    };
    item.append(button);
    return item;
  })));
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  say(null);
  try {
    const seed = $("seed").value;
    const input = {
      image: await asBase64(picked),
      preset: new FormData($("form")).get("preset"),
      output: { turntable: $("turntable").checked },
      ...(seed === "" ? {} : { seed: Number(seed) }),
    };
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(input) };
    const endpoint = $("endpoint").value.trim();
    const path = endpoint ? `/jobs?endpoint=${encodeURIComponent(endpoint)}` : "/jobs";
    const job = await (await api(path, options)).json();
    update(job);
    await follow(job.id);
  } catch (err) {
    showProgress(null);
    say(err.message);
  }
};
$("cancel").onclick = () => api(`/jobs/${current.id}/cancel`, { method: "POST" }).catch((err) => say(err.message));
$("file").onchange = (event) => pick(event.target.files[0]);
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") pick(event.dataTransfer.files[0]);
  });
}
for (const button of document.querySelectorAll("[data-view]")) button.onclick = () => setView(button.dataset.view);

async function watch() {
  try {
    const response = await fetch("/ping");
    if (response.status === 200) {
      const health = await (await api("/health")).json();
      $("worker").textContent = `engine ${health.engine.name}, ready`;
      loadHistory();
      return;
    }
    if (response.status === 503) { $("worker").textContent = (await response.json()).error; return; }
    $("worker").textContent = "starting…";
  } catch (err) { $("worker").textContent = err.message; }
  setTimeout(watch, 1000);
}
watch();
