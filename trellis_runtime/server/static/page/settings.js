// Presets as cards, and every other field of a request, made from the published schema.
import { $, h, show } from "./dom.js";
import { bytes, FORMATS, PRESETS, seconds } from "./words.js";

const ELSEWHERE = ["image", "image_url", "finish_of", "variants", "keep", "seed", "preset", "background", "output.delivery", "output.upload_url"];
const UNITS = {
  resolution: "cells", texture_size: "px", decimation_target: "faces", remesh_band: "cells",
  min_thickness: "of the cube", "output.size_m": "m",
};

// Yields [path, schema] of each field that one control can hold; lists and objects are for programs.
function* leaves(schema, part, prefix = "") {
  for (const [name, field] of Object.entries(part.properties || {})) {
    const path = prefix + name;
    const inner = field.$ref || field.allOf?.[0]?.$ref;
    if (inner) yield* leaves(schema, schema[inner.split("/").pop()], `${path}.`);
    else {
      const plain = field.anyOf ? { ...field.anyOf.find((o) => o.type !== "null"), default: field.default, description: field.description } : field;
      if (!ELSEWHERE.includes(path) && ["integer", "number", "boolean", "string"].includes(plain.type)) yield [path, plain];
    }
  }
}

const at = (object, path) => path.split(".").reduce((value, name) => value?.[name], object);

function put(object, path, value) {
  const names = path.split(".");
  const last = names.pop();
  names.reduce((inner, name) => inner[name] ||= {}, object)[last] = value;
}

export class Settings {
  constructor(schemas, told) {
    this.told = told;
    this.controls = new Map();
    this.preset = "fast";
    this.finishes = [];  // of an earlier request, made by a program: taken over as they are
    this.lods = [];
    this.#cards();
    this.#formats();
    this.#fields(schemas);
    $("dice").onclick = () => { $("seed").value = this.draw(); };
    $("reset").onclick = () => this.reset();
  }

  draw() { return crypto.getRandomValues(new Uint32Array(1))[0] % 2147483648; }

  expect(expected) {
    for (const [name, place] of Object.entries(this.places)) {
      const known = expected[name];
      place.textContent = known ? `about ${seconds(known.seconds)}, ${bytes(known.bytes)}` : "";
    }
  }

  choose(name) {
    this.preset = name;
    for (const input of document.getElementsByName("preset")) input.checked = input.value === name;
    this.#show();
  }

  reset() {
    for (const control of this.controls.values()) control.changed = false;
    [this.finishes, this.lods] = [[], []];
    for (const input of this.formats) input.checked = false;
    this.#show();
  }

  // Only what differs from the preset's own values is sent.
  request() {
    const asked = { preset: this.preset };
    for (const [path, control] of this.controls) if (control.changed) put(asked, path, control.read());
    const chosen = this.formats.filter((input) => input.checked).map(({ value }) => ({ name: value, format: value }));
    if (chosen.length + this.finishes.length) put(asked, "output.finishes", [...this.finishes, ...chosen]);
    if (this.lods.length) put(asked, "output.lods", this.lods);
    return asked;
  }

  // Takes the settings of an earlier request.
  take(request) {
    this.choose(request.preset || "fast");
    for (const [path, control] of this.controls) {
      const value = at(request, path);
      control.changed = value !== undefined && value !== null;
      if (control.changed) control.write(value);
    }
    const ours = (finish) => this.formats.some(({ value }) => finish.name === value && finish.format === value) && Object.keys(finish).length === 2;
    const finishes = request.output?.finishes || [];
    for (const input of this.formats) input.checked = finishes.some((finish) => ours(finish) && finish.format === input.value);
    this.finishes = finishes.filter((finish) => !ours(finish));
    this.lods = request.output?.lods || [];
    this.#show();
  }

  #cards() {
    this.places = {};
    $("presets").replaceChildren(...Object.entries(PRESETS).map(([name, [title, about]]) => {
      const expected = this.places[name] = h("small", { class: "expected" });
      const input = h("input", { type: "radio", name: "preset", value: name, class: "quiet", onchange: () => this.choose(name) });
      input.checked = name === this.preset;
      return h("label", { class: "card" }, input, h("b", {}, title), expected, h("small", {}, about));
    }));
    this.expect(this.told.expected);
  }

  // The model itself comes always; the others are made of the same sampling.
  #formats() {
    const chip = (name, always) => {
      const about = this.told.formats.includes(name) ? FORMATS[name] : `${FORMATS[name]} This server lacks what writes it.`;
      const input = h("input", { type: "checkbox", value: name, class: "quiet", disabled: always || !this.told.formats.includes(name) });
      input.checked = always;
      return [input, h("label", { class: "chip", title: about }, input, name.toUpperCase())];
    };
    const chips = Object.keys(FORMATS).map((name) => chip(name, name === "glb"));
    this.formats = chips.map(([input]) => input).filter((input) => input.value !== "glb");
    $("formats").replaceChildren(...chips.map(([, label]) => label));
  }

  #fields(schemas) {
    for (const [path, field] of leaves(schemas, schemas.GenerationRequest)) this.controls.set(path, this.#control(path, field));
    $("fields").replaceChildren(...[...this.controls.values()].map((control) => control.row));
    this.#show();
  }

  #control(path, field) {
    const ignored = this.told.ignored_fields.some((name) => path === name || path.startsWith(`${name}.`));
    const input = this.#input(field);
    const control = { changed: false, field, input };
    input.id = `field-${path}`;
    input.disabled = ignored;
    input.addEventListener("change", () => { control.changed = input.value !== "" || field.type === "boolean"; this.#show(); });
    control.read = () => field.type === "boolean" ? input.checked : ["integer", "number"].includes(field.type) ? Number(input.value) : input.value;
    control.write = (value) => { if (field.type === "boolean") input.checked = value; else input.value = value ?? ""; };
    const back = h("button", { type: "button", class: "flat", "aria-label": `reset ${path}`, onclick: () => { control.changed = false; this.#show(); } }, "↺");
    control.back = back;
    const range = field.minimum === undefined ? "" : `${field.minimum} to ${field.maximum} `;
    const about = `${field.description || ""}${ignored ? " This engine ignores it." : ""}`;
    control.row = h("div", { class: ignored ? "field ignored" : "field", title: about },
      h("label", { for: input.id }, path.replaceAll("_", " ").replaceAll(".", ": ")), input,
      h("span", { class: "unit" }, `${range}${UNITS[path] || ""}`), back);
    return control;
  }

  #input(field) {
    if (field.enum) return h("select", {}, ...field.enum.map((value) => h("option", { value: String(value) }, String(value))));
    if (field.type === "boolean") return h("input", { type: "checkbox" });
    if (field.type === "string") return h("input", { type: "text" });
    const step = field.type === "integer" ? "1" : "any";
    return h("input", { type: "number", min: String(field.minimum ?? ""), max: String(field.maximum ?? ""), step });
  }

  // Controls that were not touched show what the preset asks for.
  #show() {
    const preset = this.told.presets[this.preset] || {};
    let changed = 0;
    for (const [path, control] of this.controls) {
      if (!control.changed) control.write(at(preset, path) ?? control.field.default);
      control.row.classList.toggle("changed", control.changed);
      show(control.back, control.changed);
      changed += control.changed;
    }
    $("changed").textContent = changed ? `(${changed} changed)` : "";
  }
}
