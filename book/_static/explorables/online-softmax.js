/* <quire-online-softmax>: scores arrive in blocks; maximum, sum and mixture are kept running.
 *
 * The arithmetic is kernels.js, the twin of `quire.analysis.kernels.OnlineSoftmax`; the data
 * holds the scores and, for each key, a value of one number. */

import { Explorable, compare, field, html, key, number, svg } from "./base.js";
import { NOTHING, add, base, factor, onlineSoftmax, output } from "./kernels.js";
import { Stepper } from "./stepper.js";

const WIDTH = 380, HEIGHT = 190, LEFT = 30, RIGHT = 6, TOP = 16, BOTTOM = 24, LOW = -4, HIGH = 6;

const fixed = (value, digits = 3) => {
  if (value === -Infinity) return "−∞";
  return value.toFixed(digits).replace("-", "−");
};

class OnlineSoftmaxStepper extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .controls b { float: right; color: var(--ink); }
    .chart { max-width: 44rem; }
    .axis { stroke: var(--rule); } .edge { stroke: var(--rule); stroke-dasharray: 2 4; }
    .score { fill: var(--muted); fill-opacity: .45; } .seen { fill: var(--c1); fill-opacity: 1; }
    .arriving { fill: var(--c2); fill-opacity: 1; } .masked { fill: none; stroke: var(--muted); stroke-dasharray: 2 2; }
    .maximum { stroke: var(--ink); stroke-width: 2; } .before { stroke: var(--ink); stroke-dasharray: 4 4; }
    svg text { font-size: 11.5px; }
    .states tr.now > * { font-weight: 600; } .states tr.later { visibility: hidden; }
    @container (max-width: 30rem) { .states .wide { display: none; } }
  `;

  build(data) {
    this.data = data;
    this.scores = [...data.scores];
    this.masked = "none";
    const [first, second] = [0, 1].map((block) => this.blockOf(block));
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(
      html("p", {}, `Scores arrive in blocks of ${data.block}. Kept are the maximum m so far, the sum l of exp(score − m), ` +
        "and the mixture a, the sum of exp(score − m) · value."),
      this.gate({
        question: `The first block is ${this.listed(first)}, so m = ${fixed(Math.max(...first), 1)}. The second block is ` +
          `${this.listed(second)}. By what factor are l and a of the first block multiplied when the second arrives?`,
        label: "Factor",
        reveal: (guess) => {
          const state = add(NOTHING, first, this.valuesOf(0)), shrink = factor(state, second);
          this.buildPanel();
          return `${number(shrink, 3)}, which is exp(${fixed(state.maximum, 1)} − ${fixed(Math.max(...second), 1)}): ` +
            `${compare(guess, shrink)}. Every weight of the first block was relative to its own maximum; relative to the ` +
            "new one all of them are smaller by the same factor, and so are their sums. No score has to be read again.";
        },
      }), this.panel);
  }

  listed(scores) { return scores.map((score) => fixed(score, 1)).join(", "); }

  get count() { return this.data.scores.length / this.data.block; }

  slice(list, block) { return list.slice(block * this.data.block, (block + 1) * this.data.block); }

  /** A block's scores; what is masked is −∞. */
  blockOf(block) {
    const hidden = { "the first block": block === 0, "the third block": block === 2,
      "all blocks": true }[this.masked] ?? false;
    return this.slice(this.scores, block).map((score) => (hidden ? -Infinity : score));
  }

  valuesOf(block) { return this.slice(this.data.values, block).map((value) => [value]); }

  buildPanel() {
    this.free = html("div", { class: "panel", hidden: true });
    this.key = html("select", { name: "key", onchange: () => this.change() },
      ...this.scores.map((_, i) => html("option", { value: i }, `key ${i + 1}`)));
    this.key.value = this.scores.indexOf(Math.max(...this.scores));
    this.value = html("input", { type: "range", name: "score", min: 10 * LOW, max: 10 * HIGH, step: 1, oninput: () => {
      this.scores[Number(this.key.value)] = this.value.valueAsNumber / 10;
      this.change();
    } });
    this.valueLabel = html("b");
    this.mask = html("select", { name: "mask", onchange: () => { this.masked = this.mask.value; this.change(); } },
      ...["none", "the first block", "the third block", "all blocks"].map((value) => html("option", { value }, value)));
    this.free.append(
      html("div", { class: "row" }, field("masked", this.mask), field("score of", this.key),
        html("button", { onclick: () => { this.scores = [...this.data.scores]; this.change(); } }, "Put all back")),
      html("div", { class: "controls" }, html("label", {}, "its score ", this.valueLabel, this.value)));
    this.stepper = new Stepper({ last: this.count, pause: 900, limit: () => (this.free.hidden ? 2 : this.count),
      show: (step, announce) => this.show(step, announce) });
    this.stepper.slider.name = "step";
    this.chart = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.said = html("p", { class: "said" });
    this.rows = html("tbody");
    const titles = [["block"], ["m"], ["factor"], ["l"], ["a", "wide"], ["a / l"]];
    this.panel.append(this.free,
      html("p", { class: "row" }, key("taken in", "var(--c1)"), key("arriving", "var(--c2)"), key("to come", "var(--muted)"),
        html("span", {}, "━ m"), html("span", {}, "╌ m before the block")),
      this.chart, this.stepper.buttons, this.stepper.field, this.said,
      html("table", { class: "states" }, html("thead", {}, html("tr", {}, ...titles.map(([title, name = null]) =>
        html("th", { scope: "col", class: name }, title)))), this.rows), this.secondGate(),
      html("p", { class: "note" }, "The engine's kernels do the same to base 2, with a vector in place of the one number of a " +
        "value, and for many queries at once."));
    this.panel.hidden = false;
    this.change(false);
    this.stepper.go(2, false);
  }

  /** A block without a new maximum; scores and masks are offered only after its answer. */
  secondGate() {
    const third = this.slice(this.data.scores, 2), state = onlineSoftmax(this.data.scores.slice(0, 2 * this.data.block),
      [0, 1].flatMap((block) => this.valuesOf(block)), this.data.block)[1];
    return this.gate({
      question: `The third block is ${this.listed(third)}; m is ${fixed(state.maximum, 1)}. By what factor are l and a ` +
        "multiplied now?",
      label: "Factor",
      reveal: (guess) => {
        const shrink = factor(state, third);
        this.free.hidden = false;
        this.change(false);
        this.stepper.go(3, false);
        return `${number(shrink, 3)}: ${compare(guess, shrink)}. The block holds no larger score, so nothing that was ` +
          "summed before changes. Step on, change a score, or mask a block: with the first block masked there is no " +
          "maximum yet, and the kernel subtracts 0, for −∞ − (−∞) is no number.";
      },
    });
  }

  /** Compute all states anew. */
  change(announce = true) {
    const chosen = Number(this.key.value);
    this.value.value = Math.round(10 * this.scores[chosen]);
    this.valueLabel.textContent = fixed(this.scores[chosen], 1);
    this.value.setAttribute("aria-valuetext", fixed(this.scores[chosen], 1));
    this.states = [NOTHING];
    this.factors = [];
    for (let block = 0; block < this.count; block += 1) {
      this.factors.push(factor(this.states.at(-1), this.blockOf(block)));
      this.states.push(add(this.states.at(-1), this.blockOf(block), this.valuesOf(block)));
    }
    this.stepper.stop();
    this.stepper.go(this.stepper.step, false);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.said.textContent), 600);
  }

  disconnectedCallback() {
    clearTimeout(this.saying);
    this.stepper?.stop();
  }

  /** The state after `step` blocks. */
  show(step, announce) {
    const now = this.states[step], before = this.states[step - 1];
    this.rows.replaceChildren(...this.factors.map((shrink, block) => {
      const state = this.states[block + 1], row = block + 1;
      return html("tr", { class: row === step ? "now" : row > step ? "later" : null, "aria-hidden": row > step ? "true" : null },
        html("th", { scope: "row" }, row), ...(row > step ? ["", "", "", "", ""] : [fixed(state.maximum, 1), fixed(shrink),
          fixed(state.total), fixed(state.mixed[0]), fixed(output(state)[0])]).map((text, i) =>
          html("td", { class: i === 3 ? "wide" : null }, text)));
    }));
    if (step === 0) this.said.textContent = "Nothing has arrived: m is −∞, l and a are 0.";
    else {
      const scores = this.blockOf(step - 1), masked = scores.every((score) => score === -Infinity);
      const subtracted = base(before, scores);
      this.said.textContent = `Block ${step} of ${this.count}: ${masked ? "all masked" : this.listed(scores)}. m goes from ` +
        `${fixed(before.maximum, 1)} to ${fixed(now.maximum, 1)}, the old sums are multiplied by ` +
        `${fixed(this.factors[step - 1])}, ` +
        `and the block adds ${fixed(now.total - this.factors[step - 1] * before.total)} to l` +
        `${now.maximum === -Infinity ? `; ${subtracted} is subtracted, for there is no maximum` : ""}. ` +
        `a / l is ${fixed(output(now)[0])}.`;
    }
    this.draw(step);
    if (announce) this.say(this.said.textContent);
  }

  y(score) { return TOP + ((HIGH - score) / (HIGH - LOW)) * (HEIGHT - TOP - BOTTOM); }

  draw(step) {
    const { block } = this.data, wide = (WIDTH - LEFT - RIGHT) / this.scores.length;
    const x = (i) => LEFT + i * wide;
    const bars = Array.from({ length: this.count }, (_, b) => this.blockOf(b)).flat().map((score, i) => {
      const masked = score === -Infinity, at = Math.floor(i / block) + 1, top = this.y(masked ? this.scores[i] : score);
      const kind = masked ? " masked" : at < step ? " seen" : at === step ? " arriving" : "";
      return svg("rect", { class: `score${kind}`, x: x(i) + 2, width: wide - 4, y: Math.min(top, this.y(0)),
        height: Math.max(Math.abs(this.y(0) - top), 1) });
    });
    const line = (value, name) => (value === -Infinity || value === undefined ? [] : [svg("line", { class: name, x1: LEFT,
      x2: WIDTH - RIGHT, y1: this.y(value), y2: this.y(value) })]);
    this.chart.replaceChildren(
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: this.y(0), y2: this.y(0) }),
      ...Array.from({ length: this.count }, (_, b) => [
        ...(b ? [svg("line", { class: "edge", x1: x(b * block), x2: x(b * block), y1: TOP, y2: HEIGHT - BOTTOM })] : []),
        svg("text", { x: x(b * block) + 4, y: HEIGHT - 6 }, `block ${b + 1}`)]).flat(), ...bars,
      ...[LOW, 0, HIGH].map((value) =>
        svg("text", { x: LEFT - 5, y: this.y(value) + 4, "text-anchor": "end" }, fixed(value, 0))),
      ...line(this.states[step - 1]?.maximum, "before"), ...line(this.states[step].maximum, "maximum"));
    this.chart.setAttribute("aria-label",
      `Scores of ${this.scores.length} keys in ${this.count} blocks. ${this.said.textContent}`);
  }
}

customElements.define("quire-online-softmax", OnlineSoftmaxStepper);
