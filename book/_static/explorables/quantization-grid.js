/* <quire-quantization-grid>: a row of weights on the grid that its groups span.
 *
 * The arithmetic is quantization.js, the twin of `quire.quantization.rounding`; the data holds
 * the first weights of a row of quire-mini, and the weight that the second question pulls
 * outward. Weights and errors are shown in thousandths. */

import { Explorable, compare, field, html, number, svg } from "./base.js";
import { points, roundToNearest } from "./quantization.js";

const WIDTH = 380, LEFT = 10, RIGHT = 10, TOP = 14, LINE = 62, DOTS = 18, AXIS = 40, NEAR = 22;
const ASKED = { kind: "int", bits: 4, symmetric: true, groupSize: null };
const KINDS = [["int", "integers"], ["fp8", "FP8 (E4M3)"]];

const thousandths = (value, digits = 1) => (1000 * value).toFixed(digits).replace("-", "−");
const shownScale = (value) => number(Number((1000 * value).toPrecision(4)), 4);
const magnitudes = (values) => values.map(Math.abs);

/** The largest error among the weights that `counts` admits. */
const worst = ({ errors }, counts = () => true) => Math.max(...errors.filter((_, i) => counts(i)));

class QuantizationGrid extends Explorable {
  static css = `
    pre { white-space: pre-wrap; margin: 0; }
    .panel > * + * { margin-top: 1rem; }
    .controls { display: grid; gap: .25rem 1.25rem; }
    @container (min-width: 34rem) { .controls { grid-template-columns: 1fr 1fr; } }
    .controls b { float: right; color: var(--ink); }
    .chart { max-width: 44rem; touch-action: pan-y; }
    .chart.free { cursor: ew-resize; }
    .axis { stroke: var(--rule); } .point { stroke: var(--muted); stroke-width: .6; }
    .weight { fill: var(--c1); fill-opacity: .8; } .pulled { fill: var(--c2); }
    .move { stroke: var(--c1); stroke-width: 1; } .spoiled .move { stroke: var(--c2); }
    .chosen { stroke: var(--ink); stroke-width: 1.5; } .spoiled text { font-weight: 600; }
    svg text { font-size: 11.5px; }
    .weights tr.first > * { border-top: 2px solid var(--muted); }
    .weights tr.moved th { color: var(--c2); }
  `;

  build(data) {
    this.data = data;
    this.original = data.weights.map(Math.fround);
    this.weights = [...this.original];
    this.chosen = data.pull.weight;
    this.panel = html("div", { class: "panel", hidden: true });
    const row = html("pre", { class: "mono note" }, this.original.map((w) => thousandths(w)).join("  "));
    this.app.append(
      html("p", {}, `Shown are the first ${this.original.length} weights of row ${data.row} of ${data.tensor} in ` +
        `${data.model}, in thousandths.`), row,
      this.gate({
        question: `These weights are stored as integers of ${ASKED.bits} bits, symmetric about 0, with one scale ` +
          `for all ${this.original.length}: the largest magnitude gets 7½ steps. What is the largest error that ` +
          "rounding to the nearest makes, in thousandths?",
        label: "Largest error, thousandths",
        reveal: (guess) => {
          row.remove();
          this.buildPanel();
          const { scales: [scale], ...found } = roundToNearest(this.original, ASKED), error = worst(found);
          return `${thousandths(error, 2)} thousandths: ${compare(guess, 1000 * error)}. The largest magnitude is ` +
            `${thousandths(Math.max(...magnitudes(this.original)))}, so a step is ${shownScale(scale)}, and no ` +
            "weight lies further than half a step from a point of the grid.";
        },
      }), this.panel);
  }

  buildPanel() {
    const oninput = () => this.update();
    const options = (pairs) => pairs.map(([value, label]) => html("option", { value }, label));
    const select = (name, pairs, onchange = oninput) => html("select", { name, onchange }, ...options(pairs));
    const count = this.original.length, limit = Math.round(1000 * this.data.pull.to);
    this.inputs = {
      kind: select("kind", KINDS),
      bits: html("input", { type: "range", name: "bits", min: 2, max: 8, step: 1, value: ASKED.bits, oninput }),
      zero: select("zero", [["symmetric", "symmetric: no zero"], ["asymmetric", "asymmetric: a zero a group"]]),
      groups: select("groups", [count, count / 2, count / 4].map((size) => [size, `${size} weights`])),
      weight: select("weight", this.original.map((_, i) => [i, `weight ${i + 1}`]), () => {
        this.chosen = Number(this.inputs.weight.value);
        this.update();
      }),
      value: html("input", { type: "range", name: "value", min: -limit, max: limit, step: 1,
        oninput: () => this.move(this.inputs.value.valueAsNumber / 1000) }),
    };
    const i = this.inputs;
    this.labels = { bits: html("b"), value: html("b") };
    this.bitsField = html("label", {}, "bits ", this.labels.bits, i.bits);
    this.free = html("div", { class: "panel", hidden: true },
      html("div", { class: "row" }, field("a scale for", i.groups), field("pull", i.weight),
        html("button", { onclick: () => this.putBack() }, "Put all back")),
      html("div", { class: "controls" }, html("label", {}, "its value ", this.labels.value, i.value)));
    this.chart = svg("svg", { class: "chart", role: "img", onpointerdown: (event) => this.grab(event),
      onpointermove: (event) => { if (this.held) this.move(this.valueAt(event)); },
      onpointerup: () => { this.held = false; }, onpointercancel: () => { this.held = false; } });
    this.groupHead = html("tr");
    this.groupRows = html("tbody");
    this.rows = html("tbody");
    const head = html("tr", {}, ...["weight", "value", "code", "stands for", "error"]
      .map((title) => html("th", { scope: "col" }, title)));
    this.panel.append(
      html("div", { class: "row" }, field("numbers", i.kind), field("zero", i.zero)),
      html("div", { class: "controls" }, this.bitsField), this.free, this.chart,
      html("p", { class: "note" }, "A dot is a weight; its line ends at the number that its code stands for. Strokes " +
        "are the numbers of the grid. The scale is rounded to bfloat16, in which it is stored."),
      html("table", { class: "groups" }, html("thead", {}, this.groupHead), this.groupRows),
      this.secondGate(),
      html("table", { class: "weights" }, html("thead", {}, head), this.rows));
    this.panel.hidden = false;
    this.update(false);
  }

  /** One weight outward; groups and the pull itself are offered only after its answer. */
  secondGate() {
    const { weight, to } = this.data.pull, most = Math.max(...magnitudes(this.original));
    return this.gate({
      question: `Now weight ${weight + 1} alone is pulled outward, from ${thousandths(this.original[weight])} to ` +
        `${thousandths(to)}, ${(to / most).toFixed(1)} times the largest magnitude so far. Integers of ${ASKED.bits} ` +
        `bits, symmetric, one scale for all ${this.original.length}: what is now the largest error among the ` +
        "other weights, in thousandths?",
      label: "Largest error of the others, thousandths",
      reveal: (guess) => {
        const i = this.inputs, others = (at) => at !== weight;
        i.kind.value = ASKED.kind;
        i.zero.value = "symmetric";
        i.bits.value = ASKED.bits;
        i.groups.value = this.original.length;
        this.free.hidden = false;
        this.chart.classList.add("free");
        this.chosen = weight;
        this.move(to, false);
        const pulled = roundToNearest(this.weights, ASKED), before = roundToNearest(this.original, ASKED);
        const error = worst(pulled, others), lost = pulled.values.filter((value) => value === 0).length;
        return `${thousandths(error, 2)} thousandths: ${compare(guess, 1000 * error)}; before the pull it was ` +
          `${thousandths(worst(before, others), 2)}. A step grew from ${shownScale(before.scales[0])} to ` +
          `${shownScale(pulled.scales[0])}, and ${lost} of the ${this.original.length} weights now stand for 0. ` +
          "Choose a scale for fewer weights: only the group of the pulled weight pays then.";
      },
    });
  }

  scheme() {
    const i = this.inputs;
    if (i.kind.value === "fp8") return { kind: "fp8", bits: 8, symmetric: true, groupSize: Number(i.groups.value) };
    return { kind: "int", bits: Number(i.bits.value), symmetric: i.zero.value === "symmetric",
      groupSize: Number(i.groups.value) };
  }

  /** How far the axis reaches: to the row before the pull, then to where weights may be pulled. */
  get reach() { return this.free.hidden ? 1.05 * Math.max(...magnitudes(this.original)) : this.data.pull.to; }

  x(value) { return LEFT + ((value / this.reach + 1) / 2) * (WIDTH - LEFT - RIGHT); }

  at(event) {
    const box = this.chart.getBoundingClientRect(), unit = WIDTH / box.width;
    return [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit];
  }

  valueAt(event) {
    const share = (this.at(event)[0] - LEFT) / (WIDTH - LEFT - RIGHT);
    return Math.min(Math.max(2 * share - 1, -1), 1) * this.reach;
  }

  /** Take the weight whose dot is nearest to the pointer, if one is near. */
  grab(event) {
    if (this.free.hidden) return;
    const [x, y] = this.at(event);
    const distances = this.weights.map((w, i) => Math.hypot(this.x(w) - x, this.dotY(this.found.groups[i]) - y));
    const nearest = distances.indexOf(Math.min(...distances));
    if (distances[nearest] > NEAR) return;
    event.preventDefault();
    this.chart.setPointerCapture(event.pointerId);
    this.held = true;
    this.chosen = nearest;
    this.update(false);
  }

  dotY(group) { return TOP + group * LINE + DOTS; }

  move(value, announce = true) {
    this.weights[this.chosen] = Math.fround(value);
    this.update(announce);
  }

  putBack() {
    this.weights = [...this.original];
    this.update();
  }

  update(announce = true) {
    const i = this.inputs, scheme = this.scheme();
    i.weight.value = this.chosen;
    i.value.value = 1000 * this.weights[this.chosen];
    this.labels.value.textContent = thousandths(this.weights[this.chosen]);
    this.labels.bits.textContent = scheme.bits;
    i.zero.disabled = i.bits.disabled = scheme.kind === "fp8"; // one width, and 0 is always 0
    this.found = roundToNearest(this.weights, scheme);
    this.before = roundToNearest(this.original, scheme);
    this.moved = this.weights.map((weight, at) => weight !== this.original[at]);
    this.spoiled = this.found.scales.map((_, group) =>
      this.moved.some((moved, at) => moved && this.found.groups[at] === group));
    this.draw(scheme);
    this.tables(scheme);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.chart.getAttribute("aria-label")), 600);
  }

  disconnectedCallback() { clearTimeout(this.saying); }

  draw(scheme) {
    const { scales, zeros, values, groups } = this.found, height = TOP + scales.length * LINE + 14;
    const lines = scales.map((scale, group) => {
      const y = TOP + group * LINE + AXIS, members = groups.flatMap((of, at) => (of === group ? [at] : []));
      const strokes = points(scheme, scale, zeros?.[group]).filter((value) => Math.abs(value) <= this.reach);
      const chosenLast = members.sort((a, b) => (a === this.chosen) - (b === this.chosen));
      return svg("g", { class: this.spoiled[group] ? "spoiled" : null },
        svg("text", { x: LEFT, y: TOP + group * LINE - 2 }, scales.length === 1 ? "all weights"
          : `weights ${Math.min(...members) + 1}–${Math.max(...members) + 1}`),
        svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
        svg("path", { class: "point", d: strokes.map((value) => `M${this.x(value).toFixed(2)} ${y - 4}v8`).join("") }),
        ...chosenLast.flatMap((at) => [
          svg("line", { class: "move", x1: this.x(this.weights[at]), y1: this.dotY(group), x2: this.x(values[at]), y2: y }),
          svg("circle", { class: `weight${this.moved[at] ? " pulled" : ""}${at === this.chosen && !this.free.hidden
            ? " chosen" : ""}`, cx: this.x(this.weights[at]), cy: this.dotY(group), r: this.moved[at] ? 5.5 : 4 })]));
    });
    this.chart.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.chart.setAttribute("aria-label", this.summary());
    this.chart.replaceChildren(...lines, ...[-1, 0, 1].map((side) => svg("text", { x: this.x(side * this.reach),
      y: height - 2, "text-anchor": side < 0 ? "start" : side ? "end" : "middle" }, thousandths(side * this.reach, 0))));
  }

  summary() {
    const error = worst(this.found), at = this.found.errors.indexOf(error), others = worst(this.before);
    const pulled = this.moved.some(Boolean) ? `, and ${thousandths(others, 2)} before a weight was pulled` : "";
    return `Weights on ${this.found.scales.length === 1 ? "one grid" : `${this.found.scales.length} grids`}, scale ` +
      `${this.found.scales.map(shownScale).join(", ")} thousandths. The largest error is ${thousandths(error, 2)} ` +
      `thousandths, of weight ${at + 1}${pulled}.`;
  }

  tables(scheme) {
    const { scales, zeros, codes, values, errors, groups } = this.found;
    const cells = (texts) => texts.map((text) => html("td", {}, text));
    const titles = ["group", "scale", ...(zeros ? ["zero"] : []), "largest error", "before a pull"];
    this.groupHead.replaceChildren(...titles.map((title) => html("th", { scope: "col" }, title)));
    this.groupRows.replaceChildren(...scales.map((scale, group) => html("tr", {},
      html("th", { scope: "row" }, `${group + 1}${this.spoiled[group] ? ", with a pulled weight" : ""}`),
      ...cells([shownScale(scale), ...(zeros ? [zeros[group]] : []),
        ...[this.found, this.before].map((each) => thousandths(worst(each, (at) => groups[at] === group), 2))]))));
    this.rows.replaceChildren(...codes.map((code, at) => {
      const first = at > 0 && groups[at] !== groups[at - 1];
      return html("tr", { class: [first && "first", this.moved[at] && "moved"].filter(Boolean).join(" ") || null },
        html("th", { scope: "row" }, at + 1),
        ...cells([thousandths(this.weights[at]), scheme.kind === "fp8" ? number(code, 4).replace("-", "−") : code,
          thousandths(values[at]), thousandths(errors[at], 2)]));
    }));
  }
}

customElements.define("quire-quantization-grid", QuantizationGrid);
