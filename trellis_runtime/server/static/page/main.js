// The page: one batch of pictures, one job on the stage, all jobs in the film strip.
import { api, events, json, post, signedIn, signOut } from "./api.js";
import { $, h, show, toast } from "./dom.js";
import { Film } from "./film.js";
import { Inputs } from "./inputs.js";
import { Settings } from "./settings.js";
import { modelsOf, showDone, showFailed, showSeeds } from "./result.js";
import { seconds, STEPS, stepOf } from "./words.js";
import * as variants from "./variants.js";
import * as viewer from "./viewer.js";

let inputs, settings;
let shown = null;  // the job on the stage
let hasModel = false;  // whether the viewer holds one
const narrow = matchMedia("(max-width: 900px)");
const film = new Film(
  () => (variants.isOpen() ? variants.ids() : [shown?.id]),
  (id) => open(id).catch((err) => say(err.message)),
  async (jobs) => {
    inputs?.told(jobs);
    if (!variants.isOpen()) return;
    await variants.told(jobs);
    $("dock-bar").value = variants.progress();
    buttons();
  },
);
const drawFilm = () => film.draw().catch((err) => say(err.message));

function say(text) {
  show($("error"), Boolean(text));
  $("error").textContent = text || "";
}

function buttons() {
  const running = variants.isOpen() ? variants.running().length > 0 : shown?.state === "running";
  $("go").disabled = !inputs || inputs.ready.length === 0;
  const models = inputs ? inputs.ready.length * ($("variants").checked ? 4 : 1) : 1;
  $("go").textContent = models > 1 ? `Make ${models} models` : "Make the model";
  show($("cancel"), running);
  show($("dock-bar"), running);
}

// --- the stage ---------------------------------------------------------------------------------
function stage(job) {
  const running = job?.state === "running", done = job?.state === "done";
  if (job) variants.close();
  show($("empty"), !job && !hasModel && !variants.isOpen());
  show($("running"), running);
  show($("failed"), job?.state === "failed");
  show($("viewer"), (hasModel || done) && !variants.isOpen());
  show($("tools"), done);
  show($("previous"), hasModel && !done && !variants.isOpen());
  if (!done) show($("inspector"), false);
  $("stage").classList.toggle("past", hasModel && !done);
}

function times(job) {
  const parts = [];
  const [, number, models] = / (\d+)\/(\d+)$/.exec(job.stage) || [];
  if (number) parts.push(`model ${number} of ${models}`);
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
    const models = modelsOf(job);
    await showModel(models.find((model) => !model.answer.error), models);
  } else {
    stage(job);
    viewer.closeOverlays();
    if (job.state === "running") progress(job);
    if (job.state === "failed") showFailed(job, remedies());
    if (job.state === "cancelled") toast("The job was cancelled.");
  }
  buttons();
}

async function showModel(model, models) {
  shown = model;
  showSeeds(models, model, (other) => showModel(other, models).catch((err) => say(err.message)));
  await viewer.open(model, filesByName(model));
  await showDone(model);
}

async function follow(id) {
  try {
    await events(`/jobs/${id}/events`, (job) => { if (shown?.id === id) display(job); });
  } finally {
    drawFilm();
    refreshExpected().catch((err) => say(err.message));
  }
}

// On a phone the stage comes first, and grows above what was being looked at.
function bring() {
  if (narrow.matches) scrollTo({ top: 0 });
}

async function open(id) {
  say(null);
  location.hash = `job=${id}`;
  await display(await json(`/jobs/${id}`));
  bring();
  drawFilm();  // the job that is shown is marked there
  if (shown.state === "running") follow(id).catch((err) => say(err.message));
}

// Several seeds of one picture, side by side.
function openVariants(ids) {
  say(null);
  location.hash = `variants=${ids.join(",")}`;
  shown = null;
  viewer.closeOverlays();
  variants.open(ids, (id) => open(id).catch((err) => say(err.message)));
  stage(null);
  buttons();
  bring();
  drawFilm();
}

// What the address names: a job, or variants.
function openAddress() {
  const named = new URLSearchParams(location.hash.slice(1));
  const id = named.get("job"), ids = named.get("variants")?.split(",").filter((one) => /^[A-Za-z0-9_-]{1,64}$/.test(one));
  if (id && id !== shown?.id) open(id).catch((err) => say(err.message));
  else if (ids?.length && ids.join() !== variants.ids().join()) openVariants(ids);
}

// --- asking ------------------------------------------------------------------------------------
const jobsOf = (endpoint) => (endpoint ? `/jobs?endpoint=${encodeURIComponent(endpoint)}` : "/jobs");

async function submit(fields, seed) {
  const asked = settings.request();
  const content = { ...asked, ...fields, ...(seed === null ? {} : { seed }) };
  return post(jobsOf($("endpoint").value.trim()), content);
}

function seeds() {
  const given = $("seed").value === "" ? null : Number($("seed").value);
  if (!$("variants").checked) return [given];
  const first = given ?? settings.draw() % 2147483000;
  return [0, 1, 2, 3].map((number) => first + number);
}

// Starts a job for each picture and seed; the first picture's are shown as soon as they run.
async function make(items, drawn) {
  say(null);
  for (const item of items) item.jobs = [];
  const all = items.map((item) => [item, drawn()]);
  if (!$("lock").checked) $("seed").value = "";
  try {
    for (const [item, some] of all) {
      const fields = await item.fields();
      for (const seed of some) {
        item.jobs.push((await patiently(() => submit(fields, seed), items)).id);
        if (item === items[0]) await present(item.jobs, some.length > 1);
        drawFilm();
      }
    }
  } catch (err) {  // what was started before it goes on
    say(err.message);
    buttons();
  }
}

// A full queue is no fault of a batch whose jobs fill it: the others wait for room.
async function patiently(send, items) {
  for (;;) {
    try {
      return await send();
    } catch (err) {
      if (err.status !== 429 || !items.some((item) => item.jobs.length)) throw err;
      toast("The queue is full; the others are sent when there is room.");
      await new Promise((resolve) => { setTimeout(resolve, 1000 * err.retryAfter); });
    }
  }
}

const present = (ids, several) => (several ? openVariants(ids) : open(ids[0]));

// The picture that is chosen, else the one that the job on the stage was given.
async function pictureOf(job) {
  if (inputs.current) return inputs.current;
  if (!job.input) throw new Error("This job's picture is not kept here; choose it again.");
  settings.take(job.request);
  return inputs.take(await (await api(job.input)).blob(), job.request.background === "keep");
}

// The same picture, settings and seed once more, in place of what is chosen; or the same latents.
async function again(job) {
  if (job.request.finish_of) {
    await open((await post(jobsOf(job.endpoint), job.request)).id);
    return;
  }
  inputs.clear();
  const item = await pictureOf(job);
  await make([item], () => [job.answer.seed]);
}

function remedies() {
  const failed = shown;
  const retry = (change = () => {}) => pictureOf(failed)
    .then((item) => { change(item); return make(inputs.ready, seeds); }).catch((err) => say(err.message));
  return {
    again: () => retry(), choose: () => $("file").click(),
    seed: () => retry(() => { $("seed").value = settings.draw(); }),
    fast: () => retry(() => settings.choose("fast")),
    whole: () => retry((item) => { item.whole = $("whole").checked = true; }),
    settings: () => { $("advanced").open = true; $("advanced").scrollIntoView(); $("advanced").querySelector("summary").focus(); },
    mark: () => pictureOf(failed).then(() => { $("cutout-canvas").scrollIntoView({ block: "center" }); $("cutout-canvas").focus(); })
      .catch((err) => say(err.message)),
  };
}

// --- what is chosen ------------------------------------------------------------------------------
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
  $("form").onsubmit = (event) => { event.preventDefault(); make(inputs.ready, seeds); };
  $("cancel").onclick = () => {
    const ids = variants.isOpen() ? variants.running() : [shown.id];
    Promise.all(ids.map((id) => api(`/jobs/${id}/cancel`, { method: "POST" }))).catch((err) => say(err.message));
  };
  $("variants").onchange = buttons;
  $("endpoint").onchange = () => refreshExpected().catch((err) => say(err.message));
  $("again").onclick = () => again(shown).catch((err) => say(err.message));
  $("same").onclick = () => { settings.take(shown.request); inputs.clear(); $("file").click(); };
  $("link").onclick = () => navigator.clipboard.writeText(location.href).then(() => toast("Copied."), () => toast(location.href));
  $("delete").onclick = async () => {
    if (!confirm("Delete this job and its files from this machine?")) return;
    await api(`/jobs/${shown.id}`, { method: "DELETE" });
    [shown, hasModel] = [null, false];
    history.replaceState(null, "", location.pathname);
    stage(null);
    drawFilm();
  };
  $("theme").onclick = theme;
  $("sign-out").onclick = signOut;
  addEventListener("hashchange", openAddress);
}

async function start(health) {
  const [told, page] = await Promise.all([json("/capabilities"), fetch("/openapi.json").then((r) => r.json())]);
  const card = health.engine.card ? ` on ${health.engine.card}` : "";
  $("worker").textContent = `${health.engine.name} engine${card}, ready`;
  $("worker").classList.add("ready");
  show($("target"), told.endpoint_possible);
  show($("sign-out"), signedIn());
  settings = new Settings(page.components.schemas, told);
  inputs = new Inputs(told.picture, buttons);
  buttons();
  drawFilm();
  openAddress();
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
