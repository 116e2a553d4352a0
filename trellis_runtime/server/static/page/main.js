// The page: one batch of pictures, one job on the stage, all jobs in the film strip.
import { api, events, json, post, signedIn, signOut } from "./api.js";
import { $, copy, h, show, toast } from "./dom.js";
import { Film } from "./film.js";
import { Inputs } from "./inputs.js";
import { Settings } from "./settings.js";
import { modelsOf, showDone, showFailed, showSeeds } from "./result.js";
import { seconds, STEPS, stepOf } from "./words.js";
import * as variants from "./variants.js";
import * as viewer from "./viewer.js";

let inputs, settings;
let shown = null;  // the job on the stage
let heard = 0;  // when the server told of it last, as performance.now() has it
let hasModel = false;  // whether the viewer holds one
let sending = null;  // the batch that is being sent: { stopped }
let watching = false;
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
  $("go").disabled = !inputs || inputs.ready.length === 0 || sending !== null;
  const models = inputs ? inputs.ready.length * ($("variants").checked ? 4 : 1) : 1;
  $("go").textContent = models > 1 ? `Make ${models} models` : "Make the model";
  show($("cancel"), running || sending !== null);
  show($("dock-bar"), running);
}

// --- the stage ---------------------------------------------------------------------------------
function stage(job) {
  const running = job?.state === "running", done = job?.state === "done";
  if (job) variants.close();
  show($("empty"), (!job || job.state === "cancelled") && !hasModel && !variants.isOpen());
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
  if (job.elapsed_seconds !== null) parts.push(`${seconds(job.elapsed_seconds + (performance.now() - heard) / 1000)} so far`);
  if (job.expected) parts.push(`about ${seconds(job.expected.seconds)} in all`);
  return parts.join(", ");
}

function progress(job) {
  const at = job.queue_place ? -1 : stepOf(job.stage);
  $("stages").replaceChildren(...STEPS.map(([name], i) =>
    h("li", { class: i < at ? "past" : i === at ? "now" : "", "aria-current": i === at ? "step" : null }, name)));
  $("progress").value = $("dock-bar").value = job.progress;
  const words = at < 0 ? "Waiting in the queue." : STEPS[at][0];
  if ($("step-words").textContent !== words) $("step-words").textContent = words;  // is read out
  tick();
}

// A stage may take minutes, in which the server has nothing new to tell.
function tick() {
  if (shown?.state !== "running") return;
  $("times").textContent = shown.queue_place ? `Waiting in the queue. ${times(shown)}` : times(shown);
}

const filesByName = (job) => Object.fromEntries((job.files || []).map((file) => [file.name, file.url]));

async function display(job) {
  [shown, heard] = [job, performance.now()];
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

const isFollowed = (id) => shown?.id === id && shown.state === "running";

// Follows a job to its end, through any loss of the server; one that knows it no more has lost it.
async function follow(id) {
  for (let pause = 1000; isFollowed(id); pause = Math.min(2 * pause, 8000)) {
    try {
      await events(`/jobs/${id}/events`, (job) => {
        if (!isFollowed(id)) return;
        say(null);
        display(job).catch((err) => say(err.message));
      });
    } catch (err) {
      if (err.status === 404 && isFollowed(id)) await display(lost(id));
      else if (isFollowed(id)) say("The server does not answer. The page goes on by itself when it does.");
    }
    if (isFollowed(id)) await new Promise((resolve) => { setTimeout(resolve, pause); });
  }
  drawFilm();
  refreshExpected().catch((err) => say(err.message));
}

// What is shown in place of a job that the server does not know.
const lost = (id) => ({ id, state: "failed", request: shown?.id === id ? shown.request : {}, endpoint: null, answer: { code: "not_found",
  error: "It was deleted, or the server was restarted before it had ended.", retryable: Boolean(inputs?.current) } });

async function found(id) {
  try {
    return await json(`/jobs/${id}`);
  } catch (err) {
    if (err.status !== 404) throw err;
    return lost(id);
  }
}

// On a phone the stage comes first, and grows above what was being looked at.
function bring() {
  if (narrow.matches) scrollTo({ top: 0 });
}

async function open(id) {
  say(null);
  location.hash = `job=${id}`;
  await display(await found(id));
  bring();
  drawFilm();  // the job that is shown is marked there
  if (isFollowed(id)) follow(id).catch((err) => say(err.message));
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
  if (sending) return;  // a second press, before the first was answered
  say(null);
  const batch = sending = { stopped: false };
  buttons();
  for (const item of items) item.jobs = [];
  const all = items.map((item) => [item, drawn()]);
  if (!$("lock").checked) $("seed").value = "";
  try {
    for (const [item, some] of all) {
      const fields = await item.fields();
      for (const seed of some) {
        if (batch.stopped) return;
        item.jobs.push((await patiently(() => submit(fields, seed), items)).id);
        if (item === items[0]) await present(item.jobs, some.length > 1);
        drawFilm();
      }
    }
  } catch (err) {  // what was started before it goes on
    say(err.message);
  } finally {
    sending = null;
    buttons();
  }
}

// A full queue is no fault of a batch whose jobs fill it: the others wait for room.
async function patiently(send, items) {
  for (;;) {
    try {
      return await send();
    } catch (err) {
      if (err.status !== 429 || sending?.stopped || !items.some((item) => item.jobs.length)) throw err;
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
  settings.expect(told);
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

async function remove() {
  if (!confirm("Delete this job and its files from this machine?")) return;
  try {
    await api(`/jobs/${shown.id}`, { method: "DELETE" });
  } catch (err) {
    if (err.status !== 404) throw err;  // another page was sooner
  }
  [shown, hasModel] = [null, false];
  history.replaceState(null, "", location.pathname);
  stage(null);
  drawFilm();
}

function actions() {
  $("form").onsubmit = (event) => { event.preventDefault(); make(inputs.ready, seeds); };
  $("cancel").onclick = () => {
    if (sending) sending.stopped = true;
    const ids = variants.isOpen() ? variants.running() : isFollowed(shown?.id) ? [shown.id] : [];
    Promise.all(ids.map((id) => api(`/jobs/${id}/cancel`, { method: "POST" }))).catch((err) => say(err.message));
  };
  $("variants").onchange = () => { settings?.tell(); buttons(); };
  $("endpoint").onchange = () => refreshExpected().catch((err) => say(err.message));
  $("again").onclick = () => again(shown).catch((err) => say(err.message));
  $("same").onclick = () => { settings.take(shown.request); inputs.clear(); $("file").click(); };
  $("link").onclick = () => copy(location.href);
  $("delete").onclick = () => remove().catch((err) => say(err.message));
  $("theme").onclick = theme;
  $("sign-out").onclick = signOut;
  addEventListener("hashchange", openAddress);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && inputs) drawFilm(); });  // another page may have asked for more
  document.addEventListener("unreachable", () => {
    $("worker").classList.remove("ready");
    $("worker").textContent = "the server does not answer";
    if (!watching) setTimeout(watch, 1000);
    watching = true;
  });
  setInterval(tick, 1000);
}

async function start(health) {
  watching = false;
  const [told, page] = await Promise.all([json("/capabilities"), fetch("/openapi.json").then((r) => r.json())]);
  const card = health.engine.card ? ` on ${health.engine.card}` : "";
  $("worker").textContent = `${health.engine.name} engine${card}, ready`;
  $("worker").classList.add("ready");
  show($("target"), told.endpoint_possible);
  show($("sign-out"), signedIn());
  if (inputs) {  // the server was away: what was chosen stays
    settings.expect(told);
    say(null);
    drawFilm();
    return;
  }
  settings = new Settings(page.components.schemas, told);
  inputs = new Inputs(told.picture, buttons);
  buttons();
  drawFilm();
  openAddress();
}

async function watch() {
  watching = true;
  try {
    const response = await fetch("/ping");
    if (response.status === 200) { await start(await json("/health")); return; }
    $("worker").textContent = response.status === 503 ? (await response.json()).error : "starting…";
  } catch { $("worker").textContent = "the server does not answer"; }
  setTimeout(watch, 1000);
}

viewer.set();
actions();
stage(null);
watch();
