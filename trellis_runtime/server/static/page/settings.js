// Presets as cards, and every other field of a request, made from the published schema.
import { $, h, show } from "./dom.js";
import { bytes, FORMATS, LABELS, PRESETS, seconds } from "./words.js";

const ELSEWHERE = ["image", "image_url", "finish_of", "variants", "seeds", "seed", "preset", "background", "output.delivery", "output.upload_url"];
const UNITS = {
  resolution: "cells", texture_size: "px", decimation_target: "faces", remesh_band: "cells",
  min_thickness: "of the cube", "output.size_m": "m", "output.lods": "faces, with commas",
};
const NUMBERS = ["integer", "number"];

// What one control reads and writes, by the kind of its field.
const KINDS = {
  boolean: { read: (input) => input.checked, write: (input, value) => { input.checked = Boolean(value); }, given: () => true },
  number: { read: (input) => Number(input.value), write: (input, value) => { input.value = value ?? ""; }, given: (input) => input.value !== "" },
  string: { read: (input) => input.value, write: (input, value) => { input.value = value ?? ""; }, given: (input) => input.value !== "" },
  numbers: { read: (input) => input.value.split(/[\s,]+/).filter(Boolean).map(Number), write: (input, value) => { input.value = (value || []).join(", "); },
    given: (input) => input.value.trim() !== "" },
  choices: { read: (input) => boxes(input).filter((box) => box.checked).map((box) => box.value),
    write: (input, value) => { for (const box of boxes(input)) box.checked = (value || []).includes(box.value); }, given: (input) => boxes(input).some((box) => box.checked) },
};
const boxes = (group) => [...group.querySelectorAll("input")];

function kindOf(field) {
  if (field.type !== "array") return NUMBERS.includes(field.type) ? "number" : field.type;
  if (field.items?.enum) return "choices";
  return [field.items, ...(field.prefixItems || [])].filter(Boolean).every((one) => NUMBERS.includes(one.type)) ? "numbers" : "array";
}

// Yields [path, schema] of each field that one control can hold; objects are for programs.
function* leaves(schema, part, prefix = "") {
  for (const [name, field] of Object.entries(part.properties || {})) {
    const path = prefix + name;
    const inner = field.$ref || field.allOf?.[0]?.$ref;
    if (inner) yield* leaves(schema, schema[inner.split("/").pop()], `${path}.`);
    else {
      const plain = field.anyOf ? { ...field.anyOf.find((o) => o.type !== "null"), default: field.default, description: field.description } : field;
      if (!ELSEWHERE.includes(path) && KINDS[kindOf(plain)]) yield [path, plain];
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
    this.#cards();
    this.#formats();
    this.#fields(schemas);
    $("dice").onclick = () => { $("seed").value = this.draw(); };
    $("reset").onclick = () => this.reset();
  }

  draw() { return crypto.getRandomValues(new Uint32Array(1))[0] % 2147483648; }

  // Takes what past jobs took, with each preset and for each format of file.
  expect({ expected, expected_files: files }) {
    [this.expected, this.expectedFiles] = [expected, files];
    this.tell();
  }

  // What is chosen on the page takes its part: the other files, and one model after the other.
  tell() {
    const models = $("variants").checked ? 4 : 1;
    for (const [name, place] of Object.entries(this.places)) {
      const known = this.expected[name];
      const more = this.#chosen().reduce((sum, { format }) => sum + (this.expectedFiles[name]?.[format] ?? 0), 0);
      place.textContent = known ? `about ${seconds(models * (known.seconds + more))}, ${bytes(models * known.bytes)}` : "";
    }
  }

  #chosen() { return [...this.finishes, ...(this.formats || []).filter((input) => input.checked).map(({ value }) => ({ name: value, format: value }))]; }

  choose(name) {
    this.preset = name;
    for (const input of document.getElementsByName("preset")) input.checked = input.value === name;
    this.#show();
  }

  reset() {
    for (const control of this.controls.values()) control.changed = false;
    this.finishes = [];
    for (const input of this.formats) input.checked = false;
    this.tell();
    this.#show();
  }

  // Only what differs from the preset's own values is sent.
  request() {
    const asked = this.preset ? { preset: this.preset } : {};
    for (const [path, control] of this.controls) if (control.changed) put(asked, path, control.read());
    if (this.#chosen().length) put(asked, "output.finishes", this.#chosen());
    return asked;
  }

  // Takes the settings of an earlier request.
  take(request) {
    this.choose(request.preset || null);  // none: what the schema says, which no card promises
    for (const [path, control] of this.controls) {
      const value = at(request, path);
      control.changed = value !== undefined && value !== null && !(Array.isArray(value) && !value.length);
      if (control.changed) control.write(value);
    }
    const ours = (finish) => this.formats.some(({ value }) => finish.name === value && finish.format === value) && Object.keys(finish).length === 2;
    const finishes = request.output?.finishes || [];
    for (const input of this.formats) input.checked = finishes.some((finish) => ours(finish) && finish.format === input.value);
    this.finishes = finishes.filter((finish) => !ours(finish));
    this.tell();
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
    this.expect(this.told);
  }

  // The model itself comes always; the others are made of the same sampling.
  #formats() {
    const chip = (name, always) => {
      const about = this.told.formats.includes(name) ? FORMATS[name] : `${FORMATS[name]} This server lacks what writes it.`;
      const input = h("input", { type: "checkbox", value: name, class: "quiet", disabled: always || !this.told.formats.includes(name), onchange: () => this.tell() });
      input.checked = always;
      return [input, h("label", { class: "chip", title: about }, input, LABELS[name] || name.toUpperCase())];
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
    const name = path.replaceAll("_", " ").replaceAll(".", ": "), kind = KINDS[kindOf(field)];
    const input = this.#input(field, name);
    const control = { changed: false, field, input, read: () => kind.read(input), write: (value) => kind.write(input, value) };
    input.id = `field-${path}`;
    for (const one of [input, ...boxes(input)]) one.disabled = ignored;
    input.addEventListener("change", () => { control.changed = kind.given(input); this.#show(); });
    const back = h("button", { type: "button", class: "flat", "aria-label": `reset ${path}`, onclick: () => { control.changed = false; this.#show(); } }, "↺");
    control.back = back;
    const range = field.minimum === undefined ? "" : `${field.minimum} to ${field.maximum} `;
    const about = `${field.description || ""}${ignored ? " This engine does nothing with it." : ""}`;
    control.row = h("div", { class: ignored ? "field ignored" : "field", title: about },
      input.getAttribute("role") === "group" ? h("span", {}, name) : h("label", { for: input.id }, name), input,
      h("span", { class: "unit" }, `${range}${UNITS[path] || ""}`), back);
    return control;
  }

  #input(field, name) {
    const kind = kindOf(field);
    if (kind === "choices") {
      return h("span", { role: "group", class: "choices", "aria-label": name }, ...field.items.enum.map((value) =>
        h("label", {}, h("input", { type: "checkbox", value: String(value) }), String(value).replaceAll("_", " "))));
    }
    if (kind === "numbers") return h("input", { type: "text", inputmode: "decimal", pattern: "\\s*[0-9.]+(\\s*,\\s*[0-9.]+)*\\s*" });
    if (field.const) return h("select", {}, h("option", { value: "" }, "no"), h("option", { value: field.const }, String(field.const)));
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
