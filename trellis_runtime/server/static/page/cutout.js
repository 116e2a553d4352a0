// The cut-out over a checkerboard, with brushes that write the alpha.
import { post, Refusal } from "./api.js";
import { $, press, show } from "./dom.js";
import { base64, canvasOf, encode, fromBase64 } from "./picture.js";

const SHOWN_PX = 900;
const UNDOS = 12;
const APART = ["cutout_uncertain", "several_pieces", "covers_picture"];

// One picture's mask: white where the object is, in alpha. `edited` once a brush has touched it.
export class Cutout {
  constructor(picture) {
    this.picture = picture;
    const scale = Math.min(1, SHOWN_PX / Math.max(picture.width, picture.height));
    this.width = Math.max(1, Math.round(picture.width * scale));
    this.height = Math.max(1, Math.round(picture.height * scale));
    this.mask = document.createElement("canvas");
    [this.mask.width, this.mask.height] = [this.width, this.height];
    this.shown = canvasOf(picture.bitmap, this.width, this.height);
    this.past = [];
    this.edited = false;
    this.warnings = [];
    this.problem = null;
    this.known = false;
  }

  get pen() { return this.mask.getContext("2d", { willReadFrequently: true }); }

  fill(on) {
    this.pen.clearRect(0, 0, this.width, this.height);
    if (on) this.pen.fillRect(0, 0, this.width, this.height);
  }

  async take(told) {
    const image = await createImageBitmap(await fromBase64(told.cutout));
    const [left, top, right, bottom] = told.box;
    this.fill(false);
    this.pen.drawImage(image, left * this.width, top * this.height, (right - left) * this.width, (bottom - top) * this.height);
    this.warnings = told.warnings;
    this.known = true;
  }

  remember() {
    this.past.push(this.pen.getImageData(0, 0, this.width, this.height));
    if (this.past.length > UNDOS) this.past.shift();
  }

  undo() {
    const before = this.past.pop();
    if (before) this.pen.putImageData(before, 0, 0);
    this.edited = this.past.length > 0;
  }

  stroke(from, to, radius, keep) {
    const pen = this.pen;
    pen.globalCompositeOperation = keep ? "source-over" : "destination-out";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = radius * 2;
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
    this.edited = true;
  }

  draw(canvas, cursor) {
    [canvas.width, canvas.height] = [this.width, this.height];
    const pen = canvas.getContext("2d");
    const object = canvasOf(this.shown);
    const inner = object.getContext("2d");
    inner.globalCompositeOperation = "destination-in";
    inner.drawImage(this.mask, 0, 0);
    pen.globalAlpha = 0.22;  // what was removed stays to be seen, so that it can be marked again
    pen.drawImage(this.shown, 0, 0);
    pen.globalAlpha = 1;
    pen.drawImage(object, 0, 0);
    if (cursor) {
      for (const [style, width] of [["#000", 4], ["#fff", 2]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width;
        pen.beginPath();
        pen.arc(cursor.at[0], cursor.at[1], cursor.radius, 0, 7);
        pen.stroke();
      }
    }
  }

  // The picture as a PNG whose alpha is the mask.
  async blob() {
    const { bitmap, width, height } = this.picture;
    const whole = canvasOf(bitmap);
    const pen = whole.getContext("2d");
    pen.globalCompositeOperation = "destination-in";
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.mask, 0, 0, width, height);
    return encode(whole, "image/png");
  }
}

export class Editor {
  constructor() {
    this.item = null;
    this.keep = true;
    this.cursor = null;
    this.canvas = $("cutout-canvas");
    this.#tools();
    this.#pointer();
    this.#keys();
  }

  get radius() { return Number($("brush-size").value) / 200 * Math.max(this.cut.width, this.cut.height); }
  get cut() { return this.item?.cutout; }

  // Shows an item of the batch, and asks the server for its cut-out unless that is known.
  async open(item) {
    this.item = item;
    show($("cutout"), Boolean(item?.picture.bitmap || item));
    if (!item) return;
    $("cutout-words").textContent = "";
    show($("cutout-tools"), Boolean(this.cut) && !item.whole);
    if (this.cut) this.redraw();
    else this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (item.whole) return this.#whole();
    if (this.cut?.known || this.cut?.problem) return this.#say();
    await this.#ask(item);
  }

  async #ask(item) {
    $("cutout").setAttribute("aria-busy", "true");
    $("cutout-words").textContent = "Finding the object…";
    try {
      const content = item.url ? { image_url: item.url } : { image: await base64(item.picture.blob) };
      const told = await this.#patiently(item, `/cutout?picture=${!item.cutout}`, content);
      if (!told) return;
      if (told.picture) await item.adopt(await fromBase64(told.picture));
      await item.cutout.take(told);
    } catch (err) {
      item.failed = err instanceof Refusal ? err.answer : { error: err.message };
      if (item.cutout) {
        item.cutout.problem = err.message;
        item.cutout.fill(false);
      }
    }
    if (this.item !== item) return;
    $("cutout").removeAttribute("aria-busy");
    show($("cutout-tools"), Boolean(item.cutout));
    if (item.cutout) this.redraw();
    this.#say();
    item.changed();
  }

  // A cut-out waits its turn among the jobs: a full queue is no fault, and is asked again.
  async #patiently(item, path, content) {
    while (this.item === item) {
      try {
        return await post(path, content);
      } catch (err) {
        if (err.status !== 429) throw err;
        $("cutout-words").textContent = "The cut-out comes when the queue has room. You need not wait for it.";
        await new Promise((resolve) => { setTimeout(resolve, 1000 * err.retryAfter); });
      }
    }
    return null;
  }

  #whole() {
    $("cutout-words").textContent = "All of the picture is taken for the object.";
    const { bitmap } = this.item.picture;
    if (!bitmap) return;
    const canvas = this.canvas;
    const scale = Math.min(1, SHOWN_PX / Math.max(bitmap.width, bitmap.height));
    [canvas.width, canvas.height] = [bitmap.width * scale, bitmap.height * scale];
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }

  #say() {
    const place = $("cutout-words");
    place.className = "note";
    if (!this.cut) {
      place.textContent = this.item.failed ? this.item.failed.error.replace(/^[a-z_]+: /, "") : "";
      return;
    }
    const { problem, warnings, edited } = this.cut;
    if (edited) place.textContent = "Your brush strokes say what the object is.";
    else if (problem) {
      place.classList.add("warn");
      place.textContent = this.item.failed?.code === "image_rejected" ? "No object was found. Paint over it with Keep, or use the whole picture."
        : `The cut-out could not be made: ${problem.replace(/^[a-z_]+: /, "")}`;
    } else if (warnings.length) {
      place.classList.add("warn");
      const apart = warnings.some((w) => APART.includes(w.code));
      place.textContent = `${apart ? "The cut-out falls apart: " : "Have a look: "}${warnings.map((w) => w.text).join("; ")}.${apart ? " Correct it with the brushes." : ""}`;
    } else place.textContent = "Only what stands out here becomes the model.";
  }

  redraw() { this.cut.draw(this.canvas, this.cursor && { at: this.cursor, radius: this.radius }); }

  #tools() {
    const brushes = [$("brush-keep"), $("brush-remove")];
    for (const button of brushes) {
      button.onclick = () => {
        this.keep = button.id === "brush-keep";
        press(brushes, button);
      };
    }
    $("brush-undo").onclick = () => { this.cut.undo(); this.redraw(); this.#say(); };
    $("brush-reset").onclick = () => {
      this.cut.known = this.cut.edited = false;
      this.cut.problem = null;
      this.cut.past = [];
      this.open(this.item);
    };
    $("brush-size").oninput = () => { if (this.cut && this.cursor) this.redraw(); };
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.cut.width, (event.clientY - box.top) / box.height * this.cut.height];
  }

  #paint(from, to) {
    this.cut.stroke(from, to, this.radius, this.keep);
    this.redraw();
    this.#say();
  }

  #pointer() {
    let last = null;
    const canvas = this.canvas;
    canvas.onpointerdown = (event) => {
      if (!this.cut || this.item.whole) return;
      canvas.setPointerCapture(event.pointerId);
      this.cut.remember();
      last = this.#at(event);
      this.#paint(last, last);
    };
    canvas.onpointermove = (event) => {
      if (!this.cut || this.item.whole) return;
      const at = this.#at(event);
      this.cursor = at;
      if (last) this.#paint(last, at);
      else this.redraw();
      if (last) last = at;
    };
    canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
    canvas.onpointerleave = () => {
      this.cursor = null;
      if (this.cut && !this.item.whole) this.redraw();
    };
  }

  #keys() {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.canvas.onkeydown = (event) => {
      if (!this.cut || this.item.whole) return;
      this.cursor ||= [this.cut.width / 2, this.cut.height / 2];
      const step = steps[event.key];
      if (step) this.cursor = this.cursor.map((value, i) => value + step[i] * this.radius);
      else if (event.key === " ") {
        this.cut.remember();
        this.#paint(this.cursor, this.cursor);
      } else return;
      event.preventDefault();
      this.redraw();
    };
    this.canvas.onblur = () => {
      this.cursor = null;
      if (this.cut && !this.item?.whole) this.redraw();
    };
  }
}
