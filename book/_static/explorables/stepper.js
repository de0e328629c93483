/* Controls that walk through the steps of a recorded run: back, step, play and a slider. */

import { field, html, reducedMotion } from "./base.js";

export class Stepper {
  /** `show(step, announce)` draws a step of [0, last]; `limit()` is the furthest allowed now. */
  constructor({ last, show, limit = () => last, pause = 350 }) {
    Object.assign(this, { last, show, limit, pause, step: 0, timer: null });
    this.slider = html("input", { type: "range", min: 0, max: last, step: 1, value: 0,
      oninput: () => { this.stop(); this.go(this.slider.valueAsNumber, true); } });
    // Not `disabled`: a button that disables itself loses the keyboard's focus.
    this.back = html("button", { onclick: () => this.move(-1) }, "◀ Back");
    this.next = html("button", { onclick: () => this.move(1) }, "Step ▶");
    this.playButton = html("button", { onclick: () => this.play() }, this.playLabel());
    this.buttons = html("div", { class: "row" }, this.back, this.next, this.playButton);
    this.field = field("Step", this.slider);
  }

  playLabel() { return reducedMotion() ? "Show all steps" : "Play"; }

  /** Show a step, or the furthest one allowed before it. */
  go(step, announce) {
    this.step = Math.min(Math.max(step, 0), this.limit());
    this.slider.value = this.step;
    this.slider.setAttribute("aria-valuetext", `step ${this.step} of ${this.last}`);
    this.back.setAttribute("aria-disabled", String(this.step === 0));
    this.next.setAttribute("aria-disabled", String(this.step === this.limit()));
    this.show(this.step, announce);
  }

  move(by) {
    this.stop();
    this.go(this.step + by, true);
  }

  play() {
    if (reducedMotion()) { this.go(this.last, true); return; }
    if (this.timer) { this.stop(); this.go(this.step, true); return; }
    if (this.step === this.last) this.go(0, false);
    this.playButton.textContent = "Pause";
    this.timer = setInterval(() => {
      const end = this.step + 1 >= this.limit();
      this.go(this.step + 1, end);
      if (end) this.stop();
    }, this.pause);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.playButton.textContent = this.playLabel();
  }
}
