// The pictures of a batch: chosen, dropped, pasted or by address; each with its cut-out.
import { $, h, show, toast } from "./dom.js";
import { Cutout, Editor } from "./cutout.js";
import { base64, prepare } from "./picture.js";
import { bytes } from "./words.js";

const EXAMPLES = ["robot", "duck", "rocket", "cactus", "ice-cream", "mushroom"];
const MOST = 20;

class Item {
  constructor(batch, picture, url = null) {
    [this.batch, this.picture, this.url] = [batch, picture, url];
    this.whole = false;
    this.jobs = [];  // the ids of what was asked with it last
    this.state = "";
    this.failed = null;
    this.cutout = picture.bitmap ? new Cutout(picture) : null;
  }

  // The picture itself, where only the server could read it.
  async adopt(blob) {
    this.picture.bitmap = await createImageBitmap(blob);
    [this.picture.width, this.picture.height] = [this.picture.bitmap.width, this.picture.bitmap.height];
    this.cutout = new Cutout(this.picture);
  }

  changed() { this.batch.draw(); }

  // The fields of a request that name this picture.
  async fields() {
    if (this.whole) return { ...await this.#plain(), background: "keep" };
    if (this.cutout?.edited) return { image: await base64(await this.cutout.blob()) };
    return this.#plain();
  }

  async #plain() { return this.url ? { image_url: this.url } : { image: await base64(this.picture.blob) }; }
}

// A picture's jobs in a few words.
function stateOf(jobs) {
  if (!jobs.length) return "";
  const running = jobs.filter((job) => job.state === "running");
  const ended = jobs.length - running.length;
  if (running.length) {
    const share = Math.round(100 * jobs.reduce((sum, job) => sum + (job.state === "running" ? job.progress : 1), 0) / jobs.length);
    return jobs.length > 1 ? `${ended} of ${jobs.length} done, ${share} %` : share ? `${share} %` : "waiting";
  }
  const failed = jobs.filter((job) => job.state !== "done").length;
  return failed ? (failed === jobs.length ? jobs[0].state : `${failed} of ${jobs.length} failed`) : "done";
}

export class Inputs {
  constructor(limits, changed) {
    [this.limits, this.onchange] = [limits, changed];
    this.items = [];
    this.current = null;
    this.editor = new Editor();
    this.#sources();
    this.#examples();
  }

  // Takes what a list of jobs says of those that were asked with these pictures.
  told(jobs) {
    const known = new Map(jobs.map((job) => [job.id, job]));
    let changed = false;
    for (const item of this.items) {
      const state = stateOf(item.jobs.map((id) => known.get(id)).filter(Boolean));
      changed ||= state !== item.state;
      item.state = state;
    }
    if (changed) this.draw();
  }

  get ready() { return this.items.filter((item) => !item.picture.problem); }

  async add(files) {
    const room = Math.max(0, MOST - this.items.length);
    if (files.length > room) toast(`At most ${MOST} pictures at once; the others were left out.`);
    for (const file of [...files].slice(0, room)) {
      this.items.push(new Item(this, await prepare(file, this.limits)));
    }
    if (this.items.length) await this.select(this.items.at(-1));
  }

  // One picture in place of those that are chosen; returns its item.
  async take(blob, whole) {
    const picture = await prepare(new File([blob], "the same picture", { type: blob.type }), this.limits);
    const item = new Item(this, picture);
    item.whole = whole;
    this.items = [item];
    this.select(item);  // its cut-out need not be waited for
    return item;
  }

  addAddress(url) {
    const picture = { name: url.split("?")[0].split("/").pop() || url, blob: null, bitmap: null, problem: null };
    this.items.push(new Item(this, picture, url));
    this.select(this.items.at(-1));
  }

  clear() {
    this.items = [];
    this.select(null);
  }

  async select(item) {
    this.current = item;
    this.draw();
    $("whole").checked = Boolean(item?.whole);
    const usable = item && !item.picture.problem;
    if (!usable) show($("cutout"), false);
    await this.editor.open(usable ? item : null);
  }

  draw() {
    $("batch").replaceChildren(...this.items.map((item) => this.#line(item)));
    this.onchange();
  }

  #line(item) {
    const { name, problem, scaledFrom, width, height, blob } = item.picture;
    const facts = scaledFrom ? `${scaledFrom.join(" × ")} px, sent as ${width} × ${height}`
      : [width ? `${width} × ${height} px` : "", blob ? bytes(blob.size) : "by address"].filter(Boolean).join(", ");
    return h("li", { class: problem ? "bad" : "" },
      h("button", { type: "button", class: "flat", "aria-current": item === this.current ? "true" : null, onclick: () => this.select(item) },
        h("b", {}, name), h("small", {}, problem || facts, item.state ? h("span", { class: "state" }, `, ${item.state}`) : null)),
      h("button", { type: "button", class: "flat", "aria-label": `remove ${name}`, onclick: () => this.#remove(item) }, "×"));
  }

  #remove(item) {
    this.items = this.items.filter((other) => other !== item);
    this.select(this.current === item ? this.items.at(-1) || null : this.current);
  }

  #sources() {
    $("file").onchange = (event) => { this.add(event.target.files); event.target.value = ""; };
    $("take").onclick = () => {
      if ($("address").value && $("address").reportValidity()) this.addAddress($("address").value.trim());
      $("address").value = "";
    };
    $("whole").onchange = () => {
      if (!this.current) return;
      this.current.whole = $("whole").checked;
      this.editor.open(this.current);
    };
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (files.length) this.add(files);
    });
    for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        event.preventDefault();
        document.body.classList.toggle("over", name === "dragenter" || name === "dragover");
        if (name === "drop") this.#dropped(event.dataTransfer);
      });
    }
  }

  // Files, or a picture that was dragged out of another page: its address.
  #dropped(data) {
    const url = data.getData("text/uri-list").split("\n").find((line) => /^https?:/.test(line));
    if (data.files.length) this.add(data.files);
    else if (url) this.addAddress(url.trim());
  }

  #examples() {
    $("examples").replaceChildren(...EXAMPLES.map((name) => {
      const path = `/static/examples/${name}.webp`;
      const take = async () => this.add([new File([await (await fetch(path)).blob()], `${name}.webp`, { type: "image/webp" })]);
      return h("button", { type: "button", title: `example: ${name}`, onclick: take }, h("img", { src: path, alt: name, width: 56, height: 56 }));
    }));
  }
}
