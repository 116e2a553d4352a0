// The film strip: every job of this machine, and what others on the page want to know of them.
import { address, json } from "./api.js";
import { $, h } from "./dom.js";
import { bytes } from "./words.js";

const SHOWN = 40, ASKED = 100, MOST = 200, PAUSE_MS = 1200;

async function frame(job, current, open) {
  const state = { running: `${Math.round(job.progress * 100)} %`, failed: "failed", cancelled: "cancelled", done: bytes(job.summary?.bytes) }[job.state];
  const picture = job.thumbnail || job.input;
  const image = picture ? h("img", { src: await address(picture), alt: "" }) : h("span", { class: "none" });
  const label = `${new Date(job.created * 1000).toLocaleString()}, ${job.state}`;
  return h("li", {}, h("button", { type: "button", class: `frame ${job.state}`, title: label, "aria-current": current.includes(job.id) ? "true" : null,
    onclick: () => open(job.id) }, image, h("span", {}, state), h("span", { class: "quiet" }, label), job.summary?.warnings ? h("span", { class: "mark", title: "has warnings" }, "!") : null));
}

export class Film {
  // `current` gives the ids that are on the stage, `open` shows a job, `told` hears each list.
  constructor(current, open, told) {
    [this.current, this.open, this.told] = [current, open, told];
    this.drawing = this.wanted = false;
    this.timer = 0;
    this.shown = SHOWN;
  }

  #more() {
    this.shown = MOST;
    this.draw().catch(() => {});
  }

  async draw() {
    this.wanted = this.drawing;  // once more, for what has changed since
    if (this.drawing) return;
    this.drawing = true;
    try {
      const jobs = await json(`/jobs?limit=${Math.max(ASKED, this.shown)}`);
      const frames = await Promise.all(jobs.slice(0, this.shown).map((job) => frame(job, this.current(), this.open)));
      if (jobs.length > this.shown) frames.push(h("li", {}, h("button", { type: "button", class: "frame", onclick: () => this.#more() }, "Older jobs")));
      $("history").replaceChildren(...(frames.length ? frames : [h("li", { class: "note" }, "none yet")]));
      clearTimeout(this.timer);
      if (jobs.some((job) => job.state === "running")) this.timer = setTimeout(() => this.draw().catch(() => {}), PAUSE_MS);
      await this.told(jobs);
    } finally { this.drawing = false; }
    if (this.wanted) await this.draw();
  }
}
