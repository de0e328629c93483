/* <quire-quantization-crossover>: the time of one layer over the rows, format by format.
 *
 * The formulas are quantization.js, the twin of `quire.analysis.quantization.LayerTime`; the data
 * holds the layer, the device, the formats, and measured products of bf16, which are drawn beside
 * the model. Times are in microseconds. */

import { Explorable, compare, field, html, number, svg } from "./base.js";
import { bitsAWeight, bound, crossings, layerTime, seconds } from "./quantization.js";

const WIDTH = 380, HEIGHT = 250, LEFT = 36, RIGHT = 14, TOP = 24, BOTTOM = 34;
const STEPS = 8; // positions of the slider for a doubling of the rows
const COLOURS = { bf16: "var(--c1)", FP8: "var(--c2)", INT8: "var(--c4)", INT4: "var(--c3)" };
const micro = (value) => `${number(Number((1e6 * value).toPrecision(3)))} µs`;
const rowsOf = (count) => (count === 1 ? "1 row" : `${number(count)} rows`);
const BOUNDS = { memory: "reading", compute: "arithmetic" };

class QuantizationCrossover extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .controls b { float: right; color: var(--ink); }
    .chart { max-width: 44rem; }
    .axis { stroke: var(--rule); } .now { stroke: var(--ink); stroke-dasharray: 3 3; }
    .curve { fill: none; stroke: var(--colour); stroke-width: 2; }
    .INT8 { stroke-dasharray: 2 5; stroke-width: 3; }
    .at { fill: var(--colour); } .measured { fill: none; stroke: var(--c1); stroke-width: 1.5; }
    .meet { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
    svg text { font-size: 11.5px; } svg .name { font-weight: 600; }
    .times th[scope=row]::before { content: ""; display: inline-block; width: .75em; height: .75em;
      margin-right: .4em; background: var(--colour); }
    @container (max-width: 30rem) { .times .wide { display: none; } }
  `;

  build(data) {
    this.data = data;
    const { device, layer, operations } = data;
    const int4 = this.format("INT4");
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(this.gate({
      question: `The ${layer.products} products of one layer of ${data.model.split("/").at(-1)} have ` +
        `${number(layer.weights / 1e6)} million weights. ${device.name}: ${number(device.bandwidth / 1e12)} TB/s ` +
        `and, in bf16, ${number(device.rates.bf16 / 1e12)} TFLOP/s. INT4 reads ${bitsAWeight(int4.scheme)} bits a ` +
        `weight instead of 16, spends ${operations.magic} integer operations on each to unpack it, and then ` +
        "multiplies in bf16, too. A row is one token of a step. From how many rows on is INT4 no faster than bf16?",
      label: "Rows at once",
      reveal: (guess) => {
        this.buildPanel();
        const [meet] = this.meetings("INT4", "bf16"), rows = Math.ceil(meet);
        return `${number(rows)} rows: ${compare(guess, rows)}. With one row INT4 takes ` +
          `${micro(this.seconds("INT4", 1))} and bf16 ${micro(this.seconds("bf16", 1))}, for both read their weights ` +
          "and little else. The arithmetic of a row is the same in both, and INT4 has unpacked before: where " +
          "arithmetic is what takes the time, four bits save none.";
      },
    }), this.panel);
  }

  format(label) { return this.data.formats.find((format) => format.label === label); }

  buildPanel() {
    const oninput = () => this.update();
    const { operations, most_rows: most, launch_us: launch } = this.data;
    this.inputs = {
      rows: html("input", { type: "range", name: "rows", min: 0, max: Math.round(STEPS * Math.log2(most)), step: 1,
        value: 0, oninput }),
      unpack: html("select", { name: "unpack", onchange: oninput },
        ...[["magic", `${operations.magic}: the magic number`], ["naive", `${operations.naive}: weight by weight`],
          ["own", "a number of your own"]].map(([value, label]) => html("option", { value }, label))),
      operations: html("input", { type: "number", name: "operations", min: 0, step: 0.1, value: 3, oninput }),
      launch: html("input", { type: "number", name: "launch", min: 0, step: 0.1, value: launch, oninput }),
    };
    const i = this.inputs;
    this.rowsLabel = html("b");
    this.ownField = field("operations", i.operations);
    this.error = html("p", { class: "error", role: "alert" });
    this.chart = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.rows = html("tbody");
    this.meets = html("tbody");
    const head = (...titles) => html("thead", {}, html("tr", {}, ...titles.map(([title, name = null]) =>
      html("th", { scope: "col", class: name }, title))));
    this.result = html("div", { class: "panel" }, this.chart,
      html("table", { class: "times" }, head(["format"], ["bits a weight", "wide"], ["time"], ["most of it is"],
        ["bf16 takes"]), this.rows),
      html("table", { class: "meetings" }, head(["which two"], ["where they cross"]), this.meets));
    this.panel.append(
      html("div", { class: "controls" }, html("label", {}, "rows at once ", this.rowsLabel, i.rows)),
      html("div", { class: "row" }, field("integer operations to unpack a weight", i.unpack), this.ownField,
        field("a launch takes, µs", i.launch)), this.error, this.result,
      html("p", { class: "note" }, `Lines: launches + max(bytes / bandwidth, unpacking + FLOPs / rate). Rings: bf16 ` +
        `as measured (${this.data.measured.source}). FP8's rate is measured, too ` +
        `(${number(this.data.device.rates.fp8 / 1e12)} TFLOP/s); INT8 was not, and has FP8's here, as the data sheet ` +
        "gives both the same. Rates are those of square products, so a ring can lie below its line. Operations to " +
        "unpack are parameters of the model; the rate of integers is the data sheet's. Left out: the rows' own bytes, " +
        "rounding them for FP8 and INT8, tiles that are not full or unpack a weight again, and kernels that reach neither ceiling."));
    this.panel.hidden = false;
    this.update(false);
  }

  get rowCount() { return Math.round(2 ** (Number(this.inputs.rows.value) / STEPS)); }

  /** Operations to unpack a weight, and microseconds of a launch, as the form says. */
  settings() {
    const { unpack, operations, launch } = this.inputs;
    return { operations: unpack.value === "own" ? operations.valueAsNumber : this.data.operations[unpack.value],
      launch: launch.valueAsNumber };
  }

  timeOf(label) {
    const { device, layer } = this.data, { operations, launch } = this.settings();
    return layerTime(device, layer, this.format(label), launch / 1e6, operations);
  }

  seconds(label, rows) { return seconds(this.timeOf(label), rows); }

  meetings(one, other) { return crossings(this.timeOf(one), this.timeOf(other), this.data.most_rows); }

  update(announce = true) {
    const { operations, launch } = this.settings();
    this.rowsLabel.textContent = number(this.rowCount);
    this.inputs.rows.setAttribute("aria-valuetext", rowsOf(this.rowCount));
    this.ownField.hidden = this.inputs.unpack.value !== "own";
    const wrong = !(operations >= 0) ? "operations to unpack a weight" : !(launch >= 0) ? "time of a launch" : null;
    this.error.textContent = wrong ? `The ${wrong} must be a number of at least 0.` : "";
    this.result.hidden = wrong !== null;
    clearTimeout(this.saying);
    if (wrong) return;
    const labels = this.data.formats.map(({ label }) => label), rows = this.rowCount;
    const times = Object.fromEntries(labels.map((label) => [label, this.timeOf(label)]));
    const plain = seconds(times.bf16, rows);
    this.rows.replaceChildren(...labels.map((label) => html("tr", { style: `--colour: ${COLOURS[label]}` },
      html("th", { scope: "row" }, label),
      html("td", { class: "wide" }, bitsAWeight(this.format(label).scheme)),
      html("td", {}, micro(seconds(times[label], rows))), html("td", {}, BOUNDS[bound(times[label], rows)]),
      html("td", {}, label === "bf16" ? "" : `${(plain / seconds(times[label], rows)).toFixed(2)}×`))));
    const pairs = labels.flatMap((one, at) => labels.slice(at + 1).map((other) => [one, other]));
    const crossed = pairs.map(([one, other]) => crossings(times[one], times[other], this.data.most_rows));
    this.meets.replaceChildren(...pairs.map(([one, other], at) => html("tr", {},
      html("th", { scope: "row" }, `${one} and ${other}`),
      html("td", {}, this.meeting(crossed[at], one, other, times)))));
    this.draw(times, rows, pairs.flatMap(([one], at) =>
      crossed[at].map((meet) => [meet, seconds(times[one], meet)])));
    if (announce) this.saying = setTimeout(() => this.say(this.chart.getAttribute("aria-label")), 600);
  }

  disconnectedCallback() { clearTimeout(this.saying); }

  /** Where two cross, in words; a whole number of rows, the first at which the order is the other. */
  meeting(found, one, other, times) {
    if (found.length) return found.map((meet) => rowsOf(Math.ceil(meet))).join(", ");
    const sign = [1, this.data.most_rows].map((at) => Math.sign(seconds(times[one], at) - seconds(times[other], at)));
    const side = sign[0] || sign[1];
    return side ? `nowhere: ${side > 0 ? other : one} is never slower` : "nowhere: equal throughout";
  }

  draw(times, rows, meets) {
    const { most_rows: most, measured } = this.data, labels = Object.keys(times);
    const all = [...labels.flatMap((label) => [1, most].map((at) => 1e6 * seconds(times[label], at))),
      ...measured.bf16.map(([, time]) => time)];
    const [least, greatest] = [Math.log10(Math.min(...all)) - 0.2, Math.log10(Math.max(...all)) + 0.04];
    const x = (at) => LEFT + (Math.log2(at) / Math.log2(most)) * (WIDTH - LEFT - RIGHT);
    const y = (us) => HEIGHT - BOTTOM - ((Math.log10(us) - least) / (greatest - least)) * (HEIGHT - TOP - BOTTOM);
    const doublings = Array.from({ length: 1 + STEPS * Math.log2(most) }, (_, at) => 2 ** (at / STEPS));
    const marks = [10, 20, 50, 100, 200, 500, 1000, 2000].filter((us) =>
      Math.log10(us) > least && Math.log10(us) < greatest);
    const line = (label) => svg("polyline", { class: `curve ${label}`, style: `--colour: ${COLOURS[label]}`,
      points: doublings.map((at) => `${x(at).toFixed(1)},${y(1e6 * seconds(times[label], at)).toFixed(1)}`).join(" ") });
    // Names stand below the left ends, where lines lie apart; equal ones share a name.
    const names = labels.reduce((found, label) => {
      const us = 1e6 * seconds(times[label], 1), same = found.find((each) => Math.abs(y(each.us) - y(us)) < 8);
      if (same) same.name += `, ${label}`; else found.push({ name: label, us });
      return found;
    }, []);
    this.chart.setAttribute("aria-label", `At ${rowsOf(rows)}: ` +
      labels.map((label) => `${label} ${micro(seconds(times[label], rows))}`).join(", ") + ".");
    this.chart.replaceChildren(
      svg("text", { x: 2, y: 12 }, "µs a layer"),
      ...marks.map((us) => svg("text", { x: LEFT - 6, y: y(us) + 4, "text-anchor": "end" }, number(us))),
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
      ...[1, 4, 16, 64, 256, 1024, 4096].filter((at) => at <= most).map((at) => svg("text",
        { x: x(at), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, number(at))),
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "rows at once"),
      svg("line", { class: "now", x1: x(rows), x2: x(rows), y1: TOP, y2: HEIGHT - BOTTOM }),
      ...labels.map(line),
      ...measured.bf16.map(([at, us]) => svg("circle", { class: "measured", cx: x(at), cy: y(us), r: 3 })),
      ...meets.map(([at, time]) => svg("circle", { class: "meet", cx: x(at), cy: y(1e6 * time), r: 4.5 })),
      ...labels.map((label) => svg("circle", { class: "at", style: `--colour: ${COLOURS[label]}`, cx: x(rows),
        cy: y(1e6 * seconds(times[label], rows)), r: 3.5 })),
      ...names.map(({ name, us }) => svg("text", { class: "name", x: LEFT + 6, y: y(us) + 14 }, name)));
  }
}

customElements.define("quire-quantization-crossover", QuantizationCrossover);
