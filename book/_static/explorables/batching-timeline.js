/* <quire-batching-timeline>: one load served by the engine in four ways of batching.
 *
 * The data are runs of quire (record_batching.py): who was in each step, with the times that
 * such steps take on a measured GPU. All figures in the table follow from the traces. */

import { Explorable, compare, field, html, key, number, svg } from "./base.js";
import { Stepper } from "./stepper.js";

const WIDTH = 360, LEFT = 20, RIGHT = 6, ROW = 15, TOP = 6, STRIP = 26, AXIS = 18;
const TITLES = {
  static: "static: wait for a full batch, then for its last request",
  dynamic: "dynamic: the same, but the first waits 50 ms at most",
  continuous: "continuous: join and leave at every step",
  chunked: "continuous, prompts in chunks",
};
const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
const ms = (value) => `${number(Number(value.toPrecision(3)))} ms`;

/** What users see of one mode: TTFT, gaps between tokens, latency, the end; all in ms. */
export function summarize({ steps, token_times: times }, arrivals) {
  const ttfts = times.map((each, i) => each[0] - arrivals[i][0]);
  const gaps = times.flatMap((each) => each.slice(1).map((time, i) => time - each[i]));
  return { meanTtft: mean(ttfts), longestGap: Math.max(...gaps), end: steps.at(-1)[1],
    meanLatency: mean(times.map((each, i) => each.at(-1) - arrivals[i][0])) };
}

class BatchingTimeline extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .wait { stroke: var(--muted); stroke-dasharray: 2 2; }
    .prompt { fill: var(--c2); } .output { fill: var(--c1); } .seats { fill: var(--c5); fill-opacity: .6; }
    .now { stroke: var(--ink); stroke-width: 1.2; } .axis { stroke: var(--rule); }
    svg text { font-size: 10px; } select { width: 100%; }
    .status { min-height: 3em; }
    .scroll { overflow-x: auto; }
    th, td { padding: .25rem; font-size: .875rem; } :is(th, td):last-child { padding-right: 0; }
    tr.chosen th { color: var(--c1); }
  `;

  build(data) {
    this.data = data;
    this.sums = Object.fromEntries(data.modes.map((mode) =>
      [mode.mode, summarize(mode, data.arrivals)]));
    this.open = data.modes.filter(({ mode }) => mode !== "chunked");
    this.panel = html("div", { class: "panel", hidden: true });
    const { static: fixed, continuous } = this.sums;
    this.app.append(this.gate({
      question: `${data.arrivals.length} requests arrive within ${number(data.arrivals.at(-1)[0])} ms at a ` +
        `server with ${data.seats} seats. With static batching (wait until ${data.seats} are there, ` +
        `serve them to the end, take the next ${data.seats}) the first token comes after ` +
        `${ms(fixed.meanTtft)} on average. How long does it take if a request may join and leave at every step?`,
      label: "Mean time to first token, ms",
      reveal: (guess) => {
        this.buildPanel();
        return `${ms(continuous.meanTtft)}: ${compare(guess, continuous.meanTtft)}. The steps are no ` +
          "faster; what went is the waiting. Look where it was, then answer the second question.";
      },
    }), this.panel);
  }

  buildPanel() {
    const { continuous, chunked } = this.sums;
    const long = this.data.arrivals.reduce((most, each, i, all) => (each[1] > all[most][1] ? i : most), 0);
    const budget = this.data.modes.find(({ mode }) => mode === "chunked").budget;
    this.second = this.gate({
      question: `Request ${long + 1} has a prompt of ${number(this.data.arrivals[long][1])} tokens. While ` +
        "continuous batching computes it in one step, everyone else waits: the longest gap between two " +
        `tokens of a request is ${ms(continuous.longestGap)}. A step of at most ${budget} tokens cuts ` +
        "the prompt into chunks. How long is the longest gap then?",
      label: "Longest gap, ms",
      reveal: (guess) => {
        this.open = this.data.modes;
        this.choose("chunked");
        return `${ms(chunked.longestGap)}: ${compare(guess, chunked.longestGap)}. It has a price: ` +
          `the mean time to first token goes from ${ms(continuous.meanTtft)} to ${ms(chunked.meanTtft)}, ` +
          "since many short steps read the weights more often than one long one.";
      },
    });
    this.modeSelect = html("select", { name: "mode", onchange: () => {
      this.choose(this.modeSelect.value);
      this.say(this.chart.getAttribute("aria-label"));
    } });
    this.controls = html("div", { class: "panel" });
    this.status = html("p", { class: "status" });
    this.chart = svg("svg", { role: "img", style: "max-width: 46rem" });
    this.rows = html("tbody");
    this.panel.append(field("Way of batching", this.modeSelect), this.controls, this.status,
      html("p", { class: "row note" }, html("span", {}, "┄ waits"), key("prompt", "var(--c2)"),
        key("output, a cell a step", "var(--c1)"), key("seats in use", "color-mix(in srgb, var(--c5) 60%, transparent)")),
      this.chart, this.second,
      html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "The ways compared" },
        html("table", {}, html("thead", {}, html("tr", {}, ...["way", "mean TTFT", "longest gap",
          "mean latency", "last token"].map((title) => html("th", { scope: "col" }, title)))), this.rows)),
      html("p", { class: "note" }, `Recorded on the engine with ${this.data.model}; each step takes what ` +
        `a step of its size takes with Qwen3-8B on an ${this.data.clock}.`));
    this.panel.hidden = false;
    this.choose("static");
  }

  choose(name) {
    this.mode = this.data.modes.find(({ mode }) => mode === name);
    this.modeSelect.replaceChildren(...this.open.map(({ mode }) =>
      html("option", { value: mode, selected: mode === name }, TITLES[mode])));
    this.stepper?.stop();
    this.stepper = new Stepper({ last: this.mode.steps.length, pause: 120,
      show: (step, announce) => this.show(step, announce) });
    this.controls.replaceChildren(this.stepper.buttons, this.stepper.field);
    this.draw();
    this.rows.replaceChildren(...this.open.map(({ mode }) => {
      const sum = this.sums[mode];
      return html("tr", { class: mode === name ? "chosen" : "" }, html("th", { scope: "row" }, mode),
        ...[ms(sum.meanTtft), ms(sum.longestGap), ms(sum.meanLatency), ms(sum.end)]
          .map((text) => html("td", {}, text)));
    }));
    this.stepper.go(this.mode.steps.length, false);
  }

  disconnectedCallback() { this.stepper?.stop(); }

  draw() {
    const { arrivals, seats, modes } = this.data, { steps } = this.mode;
    const last = Math.max(...modes.map(({ mode }) => this.sums[mode].end));
    const height = TOP + arrivals.length * ROW + STRIP + AXIS, bottom = height - AXIS;
    this.x = (time) => LEFT + (time / last) * (WIDTH - LEFT - RIGHT);
    const y = (i) => TOP + i * ROW, marks = [], first = new Map();
    for (const [begin, end, entries] of steps) {
      const x = this.x(begin), width = Math.max(this.x(end) - x - 0.4, 0.4);
      for (const [i, start] of entries) {
        if (!first.has(i)) first.set(i, begin);
        marks.push(svg("rect", { class: start < arrivals[i][1] ? "prompt" : "output",
          x, width, y: y(i) + 2, height: ROW - 5 }));
      }
      const used = (entries.length / seats) * (STRIP - 6);
      marks.push(svg("rect", { class: "seats", x, width: width + 0.4, y: bottom - used, height: used }));
    }
    const waits = arrivals.map(([arrives], i) => svg("line", { class: "wait", x1: this.x(arrives),
      x2: this.x(first.get(i)), y1: y(i) + ROW / 2, y2: y(i) + ROW / 2 }));
    const labels = arrivals.map((_, i) => svg("text", { x: LEFT - 5, y: y(i) + ROW - 4,
      "text-anchor": "end" }, `${i + 1}`));
    const ticks = [0, 100, 200, 300, 400, 500].filter((time) => time <= last).map((time) =>
      svg("text", { x: this.x(time), y: height - 4, "text-anchor": "middle" }, time ? `${time}` : "0 ms"));
    this.now = svg("line", { class: "now", y1: 0, y2: bottom });
    this.chart.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.chart.replaceChildren(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }),
      ...waits, ...marks, ...labels, ...ticks, this.now);
    const sum = this.sums[this.mode.mode];
    this.chart.setAttribute("aria-label", `Timeline of ${TITLES[this.mode.mode]}: ${steps.length} steps, ` +
      `mean time to first token ${ms(sum.meanTtft)}, longest gap between tokens ${ms(sum.longestGap)}, ` +
      `mean latency ${ms(sum.meanLatency)}.`);
  }

  show(k, announce) {
    const { arrivals } = this.data, { steps } = this.mode;
    const [begin, end, entries] = steps[k - 1] ?? [0, 0, []];
    this.now.setAttribute("x1", this.x(end));
    this.now.setAttribute("x2", this.x(end));
    const prompts = entries.filter(([i, start]) => start < arrivals[i][1])
      .map(([i, , count]) => `${number(count)} prompt tokens of request ${i + 1}`);
    const outputs = entries.filter(([i, start]) => start >= arrivals[i][1]).map(([i]) => i + 1);
    const parts = [...prompts, ...(outputs.length
      ? [`one token ${outputs.length > 1 ? "each of requests" : "of request"} ${outputs.join(", ")}`] : [])];
    const waiting = arrivals.flatMap(([time], i) => (time <= begin &&
      !steps.slice(0, k).some(([, , each]) => each.some(([index]) => index === i)) ? [i + 1] : []));
    this.status.textContent = k === 0 ? "Before the first request."
      : `Step ${k} of ${steps.length}, ${number(begin, 4)} to ${number(end, 4)} ms: ${parts.join("; ")}.` +
        (waiting.length ? ` Waiting: ${waiting.join(", ")}.` : "");
    if (announce) this.say(this.status.textContent);
  }
}

customElements.define("quire-batching-timeline", BatchingTimeline);
