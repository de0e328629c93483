/* <quire-decode-stepper>: replay a recorded run of the engine, with and without the KV cache.
 *
 * The data is a trace of quire itself: the tokens it chose and the positions its scheduler
 * computed at each step, with FLOPs and bytes from `quire.analysis`. The columns without a
 * cache are the same run recomputed from its first token at every step. */

import { Explorable, amount, compare, html, key, number, svg, visible } from "./base.js";
import { Stepper } from "./stepper.js";

const WIDTH = 360, HEIGHT = 170, LEFT = 8, BOTTOM = 22, TOP = 14;
const MEASURES = [
  ["positions", "positions computed", (value) => number(value)],
  ["flops", "arithmetic", (value) => amount(value, "FLOP")],
  ["bytes", "memory traffic", (value) => amount(value, "B")],
];

class DecodeStepper extends Explorable {
  static css = `
    .text { border: 1px solid var(--rule); border-radius: 5px; padding: .6rem .75rem;
      white-space: pre-wrap; overflow-wrap: anywhere; height: 13em; overflow-y: auto; }
    .text .prompt { color: var(--muted); }
    .text .now { outline: 2px solid var(--c2); border-radius: 2px; }
    .strips { display: grid; gap: .15rem; }
    .strips p { font-size: .875rem; margin-top: .35rem; }
    .cell { fill: none; stroke: var(--rule); stroke-width: .5; }
    .cell.cached { fill: var(--c1); fill-opacity: .35; }
    .cell.computed { fill: var(--c2); stroke: var(--c2); }
    .line { fill: none; stroke-width: 2; }
    .axis { stroke: var(--rule); }
    td { white-space: nowrap; }
    small { display: block; color: var(--muted); font-size: .8125rem; }
  `;

  build(data) {
    this.data = data;
    this.step = 0;
    const prompt = data.prompt_tokens.length, last = data.steps.length;
    this.totals = this.accumulate();
    this.player = html("div", { hidden: true });
    const answer = this.totals.without.positions[last];
    const withCache = this.totals.with.positions[last];
    this.app.append(
      this.gate({
        question: `${data.model} reads a prompt of ${prompt} tokens and writes ${last} more. ` +
          "Without a KV cache, every step computes every position so far again. " +
          `How many positions does it compute over the ${last} steps?`,
        label: "Positions computed, all steps together",
        reveal: (guess) => {
          this.buildPlayer();
          return `${number(answer)} positions: ${compare(guess, answer)}. With the cache it is ` +
            `${number(withCache)}, one for each token but the last. Step through the run to ` +
            "see where they come from.";
        },
      }),
      this.player,
    );
  }

  /** Sums over steps 1…k of every measure, k from 0. */
  accumulate() {
    const totals = { with: {}, without: {} };
    for (const side of ["with", "without"]) {
      for (const [name] of MEASURES) {
        totals[side][name] = [0];
        for (const step of this.data.steps) {
          totals[side][name].push(totals[side][name].at(-1) + step[side][name]);
        }
      }
    }
    return totals;
  }

  buildPlayer() {
    const last = this.data.steps.length;
    this.stepper = new Stepper({ last, show: (step, announce) => this.show(step, announce) });
    this.text = html("div", { class: "text mono", tabindex: "0", role: "group",
      "aria-label": "Prompt and text written so far" });
    this.status = html("p", {});
    this.cells = { with: this.strip(), without: this.strip() };
    this.cellNotes = { with: html("p"), without: html("p") };
    this.tableBody = html("tbody");
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      style: "max-width: 28rem" });
    this.player.append(
      this.stepper.buttons, this.stepper.field,
      this.status,
      this.text,
      html("div", { class: "strips" },
        html("p", { class: "row note" }, key("computed in this step", "var(--c2)"),
          key("read from the cache", "color-mix(in srgb, var(--c1) 35%, transparent)"),
          key("not there yet", "transparent")),
        this.cellNotes.with, this.cells.with.root,
        this.cellNotes.without, this.cells.without.root),
      html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col" },
        "this step", html("small", {}, "and so far")),
        html("th", { scope: "col" }, "with cache"), html("th", { scope: "col" }, "without"))),
        this.tableBody),
      this.chart,
      html("p", { class: "note" }, this.footnote()),
    );
    for (const child of [...this.player.children].slice(1)) child.style.marginTop = "1rem";
    this.player.hidden = false;
    this.stepper.go(0, false);
  }

  footnote() {
    const { dtype, kv_bytes_per_token: kv, weight_bytes: weights } = this.data;
    return `Recorded on the engine: ${this.data.command}. Bytes are the least that must cross the ` +
      `memory bus in ${dtype}: the weights that a step reads (of ${amount(weights, "B")}) and, with ` +
      `the cache, ${amount(kv, "B")} a token. The cache saves arithmetic and pays for it in traffic.`;
  }

  strip() {
    const count = this.data.prompt_tokens.length + this.data.steps.length - 1;
    const size = 640 / count;
    const cells = Array.from({ length: count }, (_, i) => svg("rect", {
      class: "cell moves", x: i * size + 0.5, y: 1, width: Math.max(size - 1, 0.5), height: 18 }));
    return { cells, root: svg("svg", { viewBox: "0 0 640 20", preserveAspectRatio: "none",
      style: "height: 1.25rem", "aria-hidden": "true" }, ...cells) };
  }

  disconnectedCallback() { this.stepper?.stop(); }

  show(step, announce) {
    this.step = step;
    const { prompt_tokens: prompt, steps } = this.data;
    const current = steps[step - 1];
    this.text.replaceChildren(html("span", { class: "prompt" }, prompt.join("")),
      ...steps.slice(0, step).map((each, i) =>
        i === step - 1
          ? html("span", { class: "now" }, each.token.replaceAll("\n", "⏎\n"))
          : each.token));
    this.text.scrollTop = this.text.scrollHeight;
    const words = current
      ? `Step ${step} of ${steps.length}, ${current.phase}: computes ` +
        `${number(current.with.positions)} position${current.with.positions === 1 ? "" : "s"} and ` +
        `chooses “${visible(current.token)}”.`
      : `Before step 1: a prompt of ${prompt.length} tokens and an empty cache.`;
    this.status.textContent = words;
    const end = current ? current.start + current.with.positions : 0;
    const paint = (cells, cached) => cells.forEach((cell, i) => {
      const state = i >= end ? "" : i < cached ? " cached" : " computed";
      cell.setAttribute("class", `cell moves${state}`);
    });
    paint(this.cells.with.cells, current ? current.start : 0);
    paint(this.cells.without.cells, 0);
    this.cellNotes.with.textContent = `With cache: ${current
      ? `${number(current.start)} rows read, ${number(current.with.positions)} computed` : "empty"}`;
    this.cellNotes.without.textContent = `Without: ${current
      ? `${number(current.without.positions)} computed` : "nothing kept"}`;
    this.tableBody.replaceChildren(...MEASURES.map(([name, label, format]) => {
      const cell = (side) => html("td", {}, current ? format(current[side][name]) : "–",
        html("small", {}, format(this.totals[side][name][step])));
      return html("tr", {}, html("th", { scope: "row" }, label), cell("with"), cell("without"));
    }));
    this.drawChart();
    if (announce) this.say(`${words} Without a cache: ${number(current?.without.positions ?? 0)}.`);
  }

  drawChart() {
    const last = this.data.steps.length;
    const top = this.totals.without.positions[last];
    const x = (k) => LEFT + (k / last) * (WIDTH - 2 * LEFT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    const line = (side, colour, end, opacity) => svg("polyline", { class: "line",
      style: `stroke: ${colour}; stroke-opacity: ${opacity}`,
      points: this.totals[side].positions.slice(0, end + 1)
        .map((value, k) => `${x(k)},${y(value)}`).join(" ") });
    const at = (side) => this.totals[side].positions[this.step];
    // The upper curve leaves room on its left, the lower one on either side.
    const left = { without: this.step > 0.3 * last, with: this.step > 0.6 * last };
    const ends = [["without", "var(--c2)"], ["with", "var(--c1)"]].flatMap(([side, colour]) => [
      svg("circle", { cx: x(this.step), cy: y(at(side)), r: 4, style: `fill: ${colour}` }),
      svg("text", { x: x(this.step) + (left[side] ? -8 : 8),
        // While the two ends are close, the upper label keeps clear of the lower one.
        y: side === "with" ? y(at(side)) - 8 : Math.min(y(at(side)) - 8, y(at("with")) - 26),
        "text-anchor": left[side] ? "end" : "start", style: "font-weight: 600" },
      `${side === "with" ? "with cache" : "without"} ${number(at(side))}`)]);
    this.chart.setAttribute("aria-label", `Positions computed up to step ${this.step}: ` +
      `${number(at("with"))} with the cache, ${number(at("without"))} without.`);
    this.chart.replaceChildren(
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - LEFT, y1: y(0), y2: y(0) }),
      svg("text", { x: LEFT, y: HEIGHT - 6 }, "positions computed so far"),
      svg("text", { x: WIDTH - LEFT, y: HEIGHT - 6, "text-anchor": "end" }, `step ${last}`),
      line("without", "var(--c2)", last, 0.3), line("with", "var(--c1)", last, 0.3),
      line("without", "var(--c2)", this.step, 1), line("with", "var(--c1)", this.step, 1), ...ends);
  }
}

customElements.define("quire-decode-stepper", DecodeStepper);
