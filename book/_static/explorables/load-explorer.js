/* <quire-load-explorer>: what users see of a server as its load rises.
 *
 * The simulator is queueing.js, the twin of `quire.analysis.queueing`, on arrivals and
 * measured step times from the data file. Every rate serves the same requests in the same
 * order, so two results differ in nothing but how fast these arrive. */

import { Explorable, compare, field, html, number, svg } from "./base.js";
import { SchedulerModel, atRate, percentile, serve } from "./queueing.js";

const WIDTH = 360, HEIGHT = 170, LEFT = 34, RIGHT = 40, TOP = 18, BOTTOM = 24;
const MOST = 64; // requests a second, the slider's end
const RATES = [1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, MOST];
const ms = (seconds) => `${number(Number((seconds * 1e3).toPrecision(3)))} ms`;
const three = (value) => number(Number(value.toPrecision(3)));

class LoadExplorer extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .row input[type=number] { width: 6.2rem; }
    .charts { display: grid; gap: 1rem; }
    @container (min-width: 40rem) { .charts { grid-template-columns: 1fr 1fr; } }
    .line { fill: none; stroke-width: 2; } .axis { stroke: var(--rule); }
    .target { stroke: var(--muted); stroke-dasharray: 4 3; }
    svg text { font-size: 11.5px; }
  `;

  build(data) {
    this.data = data;
    this.panel = html("div", { class: "panel", hidden: true });
    const s = data.scenario;
    const median = (rate) => percentile(this.serve({ ...s, rate }).ttfts(), 0.5);
    const before = median(s.rate);
    this.app.append(this.gate({
      question: `Qwen3-8B on one ${data.clock.split(",")[0]}, ${s.max_num_seqs} seats, at most ` +
        `${number(s.budget)} tokens a step. ${data.workloads[s.workload].length} requests arrive at random, of ` +
        `${this.lengths(data.workloads[s.workload])}. At ${s.rate} a second, half of them have their first ` +
        `token within ${ms(before)}. Within how many milliseconds does half of them have it at ` +
        `${s.loaded_rate} a second?`,
      label: "Median time to first token, ms",
      reveal: (guess) => {
        const after = median(s.loaded_rate);
        this.buildPanel({ ...s, rate: s.loaded_rate });
        return `${ms(after)}: ${compare(guess, after * 1e3)}. The load rose ` +
          `${three(s.loaded_rate / s.rate)} times and the wait ${three(after / before)} times: requests ` +
          "now come faster than they leave, and the queue grows until they stop coming.";
      },
    }), this.panel);
  }

  /** The run of a scenario, and nothing else: the chapter's `serve`. */
  serve({ workload, rate, max_num_seqs: seats, budget }) {
    return serve(atRate(this.data.workloads[workload], rate), new SchedulerModel(seats, budget),
      this.data.step_time);
  }

  measure(scenario) {
    const run = this.serve(scenario), ttfts = run.ttfts(), gaps = run.interTokenLatencies();
    const slo = [scenario.ttft_ms / 1e3, scenario.tpot_ms / 1e3];
    return { rate: scenario.rate, ttft50: percentile(ttfts, 0.5), ttft99: percentile(ttfts, 0.99),
      itl50: percentile(gaps, 0.5), itl99: percentile(gaps, 0.99), goodput: run.goodput(...slo),
      attainment: run.attainment(...slo), throughput: run.outputTokensPerSecond,
      present: run.meanInSystem(), queue: Math.max(...run.steps.map(({ numWaiting }) => numWaiting)) };
  }

  buildPanel(scenario) {
    const oninput = () => this.update();
    const choice = (name, values, chosen) => html("select", { name, onchange: oninput }, ...values.map(
      (value) => html("option", { value, selected: value === chosen }, number(value))));
    const target = (name, value) => html("input", { type: "number", name, value, min: 1, step: 1, oninput });
    this.inputs = {
      workload: html("select", { name: "workload", onchange: oninput }, ...Object.entries(this.data.workloads)
        .map(([name, rows]) => html("option", { value: name, selected: name === scenario.workload },
          `${name}: ${this.lengths(rows)}`))),
      rate: html("input", { type: "range", name: "rate", min: 1, max: MOST, step: 1, value: scenario.rate, oninput }),
      max_num_seqs: choice("max-num-seqs", [4, 8, 16, 32, 64], scenario.max_num_seqs),
      budget: choice("budget", [128, 256, 512, 1024, 2048, 4096], scenario.budget),
      ttft_ms: target("ttft", scenario.ttft_ms), tpot_ms: target("tpot", scenario.tpot_ms),
    };
    const i = this.inputs;
    this.rateLabel = html("span");
    this.error = html("p", { class: "error", role: "alert" });
    this.rows = html("tbody");
    this.charts = ["ttft", "goodput"].map(() => svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }));
    this.panel.append(field("requests", i.workload), html("label", {}, this.rateLabel, i.rate),
      html("div", { class: "row" }, field("seats", i.max_num_seqs), field("tokens a step", i.budget),
        field("TTFT target, ms", i.ttft_ms), field("TPOT target, ms", i.tpot_ms)),
      this.error, html("div", { class: "charts" }, ...this.charts), html("table", {}, this.rows),
      html("p", { class: "note" }, `A simulation: the scheduler's decisions over ` +
        `${this.data.workloads.chat.length} requests that arrive at random, each step as long as one of ` +
        `its size takes with Qwen3-8B on an ${this.data.clock}. Goodput counts requests that met both targets.`));
    this.panel.hidden = false;
    this.update(false);
  }

  lengths(rows) {
    const mean = (column) => Math.round(rows.reduce((total, row) => total + row[column], 0) / rows.length);
    return `${number(mean(1))} prompt and ${mean(2)} output tokens on average`;
  }

  update(announce = true) {
    const i = this.inputs;
    const scenario = { workload: i.workload.value };
    for (const name of ["rate", "max_num_seqs", "budget", "ttft_ms", "tpot_ms"]) scenario[name] = Number(i[name].value);
    const wrong = ["ttft_ms", "tpot_ms"].find((name) => !(scenario[name] > 0));
    this.error.textContent = wrong
      ? `The ${wrong.slice(0, 4).toUpperCase()} target must be greater than 0 ms.` : "";
    if (wrong) return;
    this.rateLabel.textContent = `${scenario.rate} request${scenario.rate > 1 ? "s" : ""} a second`;
    const now = this.measure(scenario);
    this.result = now;
    this.rows.replaceChildren(...[
      ["TTFT, median", ms(now.ttft50)], ["TTFT, 99th percentile", ms(now.ttft99)],
      ["between tokens, median", ms(now.itl50)], ["between tokens, 99th percentile", ms(now.itl99)],
      ["requests that meet both targets", `${three(100 * now.attainment)} %`],
      ["goodput", `${three(now.goodput)} requests/s`],
      ["output", `${number(Math.round(now.throughput))} tok/s`],
      ["requests present, on average", three(now.present)], ["longest queue", number(now.queue)],
    ].map(([label, value]) => html("tr", {}, html("th", { scope: "row" }, label), html("td", {}, value))));
    const { rate, ...rest } = scenario, name = JSON.stringify(rest);
    if (this.swept !== name) {
      this.swept = name;
      this.curve = [];
      this.sweep(scenario, name);
    }
    this.draw(scenario);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.charts[0].getAttribute("aria-label")), 600);
  }

  /** Add one rate after the other, so that a slider never waits for all of them. */
  sweep(scenario, name) {
    if (this.swept !== name || this.curve.length === RATES.length || !this.isConnected) return;
    this.curve.push(this.measure({ ...scenario, rate: RATES[this.curve.length] }));
    this.draw(scenario);
    this.sweeping = setTimeout(() => this.sweep(scenario, name));
  }

  disconnectedCallback() {
    clearTimeout(this.saying);
    clearTimeout(this.sweeping);
  }

  draw(scenario) {
    const now = this.result, log = (value) => Math.log10(Math.max(value, 1e-3));
    const x = (rate) => LEFT + (rate / MOST) * (WIDTH - LEFT - RIGHT);
    const chart = (element, title, y, lines, extra, words) => {
      element.setAttribute("aria-label", words);
      element.replaceChildren(svg("text", { x: 2, y: 11 }, title),
        svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
        svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, `${MOST} requests a second`),
        ...extra, ...lines.flatMap(([get, colour, label]) => {
          const at = this.curve.at(-1);
          return [svg("polyline", { class: "line", style: `stroke: ${colour}`,
            points: this.curve.map((point) => `${x(point.rate)},${y(get(point))}`).join(" ") }),
          svg("circle", { cx: x(now.rate), cy: y(get(now)), r: 4, style: `fill: ${colour}` }),
          ...(label && at ? [svg("text", { x: x(at.rate) + 4, y: y(get(at)) + 4 }, label)] : [])];
        }));
    };
    const tops = [1e-2, 1e-1, 1, 10];
    const yTime = (value) => HEIGHT - BOTTOM - ((log(Math.min(Math.max(value, 5e-3), 30)) - log(5e-3)) /
      (log(30) - log(5e-3))) * (HEIGHT - TOP - BOTTOM);
    const yRate = (value) => HEIGHT - BOTTOM - (value / MOST) * (HEIGHT - TOP - BOTTOM);
    chart(this.charts[0], "time to first token (log)", yTime,
      [[(p) => p.ttft50, "var(--c1)", "median"], [(p) => p.ttft99, "var(--c2)", "p99"]],
      [...tops.map((value) => svg("text", { x: 2, y: yTime(value) + 4 }, value < 1 ? `${value * 1e3} ms` : `${value} s`)),
        svg("line", { class: "target", x1: LEFT, x2: WIDTH - RIGHT,
          y1: yTime(scenario.ttft_ms / 1e3), y2: yTime(scenario.ttft_ms / 1e3) })],
      `At ${now.rate} requests a second the time to first token is ${ms(now.ttft50)} in the median and ` +
      `${ms(now.ttft99)} at the 99th percentile; goodput is ${three(now.goodput)} requests a second.`);
    chart(this.charts[1], "goodput, requests a second", yRate, [[(p) => p.goodput, "var(--c3)", ""]],
      [svg("line", { class: "target", x1: x(0), x2: x(MOST), y1: yRate(0), y2: yRate(MOST) }),
        svg("text", { x: x(40), y: yRate(54), "text-anchor": "end" }, "all meet the targets"),
        ...[16, 32, 48].map((value) => svg("text", { x: 14, y: yRate(value) + 4 }, `${value}`))],
      `Goodput over the rate: ${three(now.goodput)} of ${now.rate} requests a second meet both targets.`);
  }
}

customElements.define("quire-load-explorer", LoadExplorer);
