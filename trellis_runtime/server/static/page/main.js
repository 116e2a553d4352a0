// The page: one batch of pictures, one job on the stage, all jobs in the film strip.
import { address, api, events, json, post, signedIn, signOut } from "./api.js";
import { $, h, show, toast } from "./dom.js";
import { Inputs } from "./inputs.js";
import { Settings } from "./settings.js";
import { showDone, showFailed } from "./result.js";
import { bytes, seconds, STEPS, stepOf } from "./words.js";
import * as viewer from "./viewer.js";

let inputs, settings;
let shown = null;  // the job on the stage
let hasModel = false;  // whether the viewer holds one
const mine = new Set();  // jobs of this page that have not ended

function say(text) {
  show($("error"), Boolean(text));
  $("error").textContent = text || "";
}

function buttons() {
  const running = shown?.state === "running";
  $("go").disabled = !inputs || inputs.ready.length === 0;
  const models = inputs ? inputs.ready.length * ($("variants").checked ? 4 : 1) : 1;
  $("go").textContent = models > 1 ? `Make ${models} models` : "Make the model";
  show($("cancel"), running);
  show($("dock-bar"), running);
}

// --- the stage ---------------------------------------------------------------------------------
function stage(job) {
  const running = job?.state === "running", done = job?.state === "done";
  show($("empty"), !job && !hasModel);
  show($("running"), running);
  show($("failed"), job?.state === "failed");
  show($("viewer"), hasModel || done);
  show($("tools"), done);
  show($("previous"), hasModel && !done);
  if (!done) show($("inspector"), false);
  $("stage").classList.toggle("past", hasModel && !done);
}

function times(job) {
  const parts = [];
  if (job.queue_place) parts.push(`${job.queue_place} ${job.queue_place === 1 ? "job" : "jobs"} before it`);
  if (job.elapsed_seconds !== null) parts.push(`${seconds(job.elapsed_seconds)} so far`);
  if (job.expected) parts.push(`about ${seconds(job.expected.seconds)} in all`);
  return parts.join(", ");
}

function progress(job) {
  const at = job.queue_place ? -1 : stepOf(job.stage);
  $("stages").replaceChildren(...STEPS.map(([name], i) =>
    h("li", { class: i < at ? "past" : i === at ? "now" : "", "aria-current": i === at ? "step" : null }, name)));
  $("progress").value = $("dock-bar").value = job.progress;
  $("times").textContent = at < 0 ? `Waiting in the queue. ${times(job)}` : times(job);
}

const filesByName = (job) => Object.fromEntries((job.files || []).map((file) => [file.name, file.url]));

async function display(job) {
  shown = job;
  if (job.state === "done") {
    hasModel = true;
    stage(job);
    await viewer.open(job, filesByName(job));
    await showDone(job);
  } else {
    stage(job);
    viewer.closeOverlays();
    if (job.state === "running") progress(job);
    if (job.state === "failed") showFailed(job, remedies());
    if (job.state === "cancelled") toast("The job was cancelled.");
  }
  buttons();
}

async function follow(id) {
  mine.add(id);
  try {
    await events(`/jobs/${id}/events`, (job) => { if (shown?.id === id) display(job); });
  } finally {
    mine.delete(id);
    film();
    refreshExpected();
  }
}

async function open(id) {
  say(null);
  location.hash = `job=${id}`;
  const job = await json(`/jobs/${id}`);
  if (matchMedia("(max-width: 900px)").matches) $("stage").scrollIntoView({ block: "start" });
  await display(job);
  film().catch((err) => say(err.message));  // the job that is shown is marked there
  if (job.state === "running") follow(id).catch((err) => say(err.message));
}

// --- asking ------------------------------------------------------------------------------------
async function submit(fields, seed) {
  const asked = settings.request();
  const content = { ...asked, ...fields, ...(seed === null ? {} : { seed }) };
  const endpoint = $("endpoint").value.trim();
  return post(endpoint ? `/jobs?endpoint=${encodeURIComponent(endpoint)}` : "/jobs", content);
}

function seeds() {
  const given = $("seed").value === "" ? null : Number($("seed").value);
  if (!$("variants").checked) return [given];
  const first = given ?? settings.draw() % 2147483000;
  return [0, 1, 2, 3].map((number) => first + number);
}

async function make() {
  say(null);
  const before = shown;
  try {
    let first = null;
    for (const item of inputs.ready) {
      const fields = await item.fields();
      for (const seed of seeds()) {
        const job = await submit(fields, seed);
        first ||= job;
        if (job !== first) mine.add(job.id);
      }
    }
    if (!$("lock").checked) $("seed").value = "";
    if (first) {
      film();
      if (matchMedia("(max-width: 900px)").matches) $("stage").scrollIntoView({ block: "start" });
      location.hash = `job=${first.id}`;
      await display(first);
      await follow(first.id);
    }
  } catch (err) {
    shown = before;
    say(err.message);
    buttons();
  }
}

function remedies() {
  const again = () => { $("form").requestSubmit(); };
  return {
    again, choose: () => $("file").click(),
    seed: () => { $("seed").value = settings.draw(); again(); },
    fast: () => { settings.choose("fast"); again(); },
    settings: () => { $("advanced").open = true; $("advanced").scrollIntoView(); $("advanced").querySelector("summary").focus(); },
    mark: () => { $("cutout-canvas").scrollIntoView({ block: "center" }); $("cutout-canvas").focus(); },
    whole: () => { if (inputs.current) { inputs.current.whole = $("whole").checked = true; again(); } },
  };
}

// --- the film strip ----------------------------------------------------------------------------
async function card(job) {
  const state = { running: `${Math.round(job.progress * 100)} %`, failed: "failed", cancelled: "cancelled", done: bytes(job.summary?.bytes) }[job.state];
  const picture = job.thumbnail || job.input;
  const image = picture ? h("img", { src: await address(picture), alt: "" }) : h("span", { class: "none" });
  const label = `${new Date(job.created * 1000).toLocaleString()}, ${job.state}`;
  return h("li", {}, h("button", { type: "button", class: `frame ${job.state}`, title: label, "aria-current": job.id === shown?.id ? "true" : null,
    onclick: () => open(job.id).catch((err) => say(err.message)) }, image, h("span", {}, state), h("span", { class: "quiet" }, label), job.summary?.warnings ? h("span", { class: "mark", title: "has warnings" }, "!") : null));
}

let drawing = false, wanted = false;
async function film() {
  wanted = drawing;  // once more, for what has changed since
  if (drawing) return;
  drawing = true;
  try {
    const jobs = await json("/jobs?limit=40");
    const cards = await Promise.all(jobs.map(card));
    if (cards.length) $("history").replaceChildren(...cards);
    else $("history").replaceChildren(h("li", { class: "note" }, "none yet"));
    if (jobs.some((job) => job.state === "running")) setTimeout(film, 1500);
  } finally { drawing = false; }
  if (wanted) await film();
}

async function refreshExpected() {
  const endpoint = $("endpoint").value.trim();
  const told = await json(endpoint ? `/capabilities?endpoint=${encodeURIComponent(endpoint)}` : "/capabilities");
  settings.expect(told.expected);
}

// --- start -------------------------------------------------------------------------------------
function theme() {
  const order = ["", "dark", "light"];
  const now = document.documentElement.dataset.theme || "";
  const next = order[(order.indexOf(now) + 1) % 3];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("theme", next);
  toast(next ? `Theme: ${next}` : "Theme: as the system has it");
}

function actions() {
  $("form").onsubmit = (event) => { event.preventDefault(); make(); };
  $("cancel").onclick = () => api(`/jobs/${shown.id}/cancel`, { method: "POST" }).catch((err) => say(err.message));
  $("variants").onchange = buttons;
  $("endpoint").onchange = () => refreshExpected().catch((err) => say(err.message));
  $("again").onclick = async () => {
    const job = shown;
    settings.take(job.request);
    $("seed").value = job.answer.seed;
    if (job.input) await inputs.add([new File([await (await api(job.input)).blob()], "the same picture", { type: "image/png" })]);
    $("form").requestSubmit();
  };
  $("same").onclick = () => { settings.take(shown.request); inputs.clear(); $("file").click(); };
  $("link").onclick = () => navigator.clipboard.writeText(location.href).then(() => toast("Copied."), () => toast(location.href));
  $("delete").onclick = async () => {
    if (!confirm("Delete this job and its files from this machine?")) return;
    await api(`/jobs/${shown.id}`, { method: "DELETE" });
    [shown, hasModel] = [null, false];
    history.replaceState(null, "", location.pathname);
    stage(null);
    film();
  };
  $("theme").onclick = theme;
  $("sign-out").onclick = signOut;
  addEventListener("hashchange", () => {
    const id = new URLSearchParams(location.hash.slice(1)).get("job");
    if (id && id !== shown?.id) open(id).catch((err) => say(err.message));
  });
}

async function start(health) {
  const [told, page] = await Promise.all([json("/capabilities"), fetch("/openapi.json").then((r) => r.json())]);
  const card = health.engine.card ? ` on ${health.engine.card}` : "";
  $("worker").textContent = `${health.engine.name} engine${card}, ready`;
  show($("target"), told.endpoint_possible);
  show($("sign-out"), signedIn());
  settings = new Settings(page.components.schemas, told);
  inputs = new Inputs(told.picture, buttons);
  buttons();
  film().catch((err) => say(err.message));
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  if (id) open(id).catch((err) => say(err.message));
}

async function watch() {
  try {
    const response = await fetch("/ping");
    if (response.status === 200) { await start(await json("/health")); return; }
    if (response.status === 503) { $("worker").textContent = (await response.json()).error; return; }
    $("worker").textContent = "starting…";
  } catch (err) { $("worker").textContent = err.message; }
  setTimeout(watch, 1000);
}

viewer.set();
actions();
stage(null);
watch();
