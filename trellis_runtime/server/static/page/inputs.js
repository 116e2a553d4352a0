// The pictures of a batch: chosen, dropped, pasted or by address; each with its cut-out.
import { $, h, show } from "./dom.js";
import { Cutout, Editor } from "./cutout.js";
import { base64, prepare } from "./picture.js";
import { bytes } from "./words.js";

const EXAMPLES = ["mushroom", "cactus", "robot", "ice-cream", "duck", "rocket"];
const MOST = 20;

class Item {
  constructor(batch, picture, url = null) {
    [this.batch, this.picture, this.url] = [batch, picture, url];
    this.whole = false;
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

export class Inputs {
  constructor(limits, changed) {
    [this.limits, this.onchange] = [limits, changed];
    this.items = [];
    this.current = null;
    this.editor = new Editor();
    this.#sources();
    this.#examples();
  }

  get ready() { return this.items.filter((item) => !item.picture.problem); }

  async add(files) {
    for (const file of [...files].slice(0, MOST - this.items.length)) {
      this.items.push(new Item(this, await prepare(file, this.limits)));
    }
    if (this.items.length) await this.select(this.items.at(-1));
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
        h("b", {}, name), h("small", {}, problem || facts)),
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
        if (name === "drop") this.add(event.dataTransfer.files);
      });
    }
  }

  #examples() {
    $("examples").replaceChildren(...EXAMPLES.map((name) => {
      const path = `/static/examples/${name}.webp`;
      const take = async () => this.add([new File([await (await fetch(path)).blob()], `${name}.webp`, { type: "image/webp" })]);
      return h("button", { type: "button", title: `example: ${name}`, onclick: take }, h("img", { src: path, alt: name, width: 56, height: 56 }));
    }));
  }
}
