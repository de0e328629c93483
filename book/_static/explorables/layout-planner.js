/* <quire-layout-planner>: every layout of a model on several GPUs, for a batch that decodes.
 *
 * The formulas are layouts.js, the twin of `quire.analysis.layout_clock`; models, devices, links
 * and the engine's constants come from the data file. Times are those of one token a request. */

import { modelConfig } from "./analysis.js";
import { Explorable, amount, compare, field, html, key, number, svg } from "./base.js";
import { DEVICE_PARTS, layouts, nameOf, steady } from "./layouts.js";

const WIDTH = 420, LEFT = 84, RIGHT = 8, ROW = 24, BAR = 15, BOTTOM = 30;
const GPUS = [1, 2, 4, 8], MOST_BATCH = 9, CONTEXTS = [7, 15]; // powers of two
const PARTS = { weights: ["reading weights", "var(--c1)"], arithmetic: ["arithmetic", "var(--c2)"],
  cache: ["reading the cache", "var(--c3)"], rows: ["activations", "var(--c6)"],
  launches: ["kernel launches", "var(--c5)"], exchange: ["exchange of ranks", "var(--c4)"],
  host: ["the host", "var(--rule)"], bubble: ["waiting for stages", "var(--rule)"] };
const milli = (seconds) => `${(1e3 * seconds).toPrecision(3)} ms`;
const requests = (count) => (count === 1 ? "1 request" : `${number(count)} requests`);

class LayoutPlanner extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .controls { display: grid; gap: .9rem; }
    @container (min-width: 40rem) { .controls { grid-template-columns: 1fr 1fr; } }
    .controls b { float: right; color: var(--ink); }
    .chart { max-width: 44rem; }
    svg text { font-size: 11px; } .axis { stroke: var(--rule); } .part { stroke: var(--paper); stroke-width: .5; }
    @container (max-width: 30rem) { svg text { font-size: 14px; } } /* the chart shrinks there, its words must not */
    .keys { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .875rem; }
    .check { display: flex; gap: .5rem; align-items: center; }
    .check input { min-height: 0; width: 1.1rem; height: 1.1rem; margin: 0; }
    @container (max-width: 30rem) { .layouts .wide { display: none; } }
  `;

  build(data) {
    this.data = data;
    const { model, device, batch, context, gpus } = data.scenario, single = { tensor: 1, pipeline: 1, data: 1, expert: 1 };
    const at = (layout) => steady(this.config(model), layout, this.machine(data.scenario), batch, context);
    const one = at(single), weights = one.parts.weights;
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(this.gate({
      question: `${model.split("/").at(-1)} decodes ${requests(batch)} of ${number(context)} tokens on an ` +
        `${data.devices[device].name.split(",")[0]}: a token takes ${milli(one.seconds)} in the model below, of which ` +
        `${milli(weights)} are spent on reading weights. Now ${gpus} of these GPUs share every matrix, and add up what ` +
        "they compute, twice in each layer. How many milliseconds does a token take?",
      label: "Milliseconds a token",
      reveal: (guess) => {
        this.buildPanel();
        const two = at({ ...single, tensor: gpus }), answer = 1e3 * two.seconds;
        return `${milli(two.seconds)}: ${compare(guess, answer)}. Reading shrinks to ${milli(two.parts.weights)}. But ` +
          `the exchange takes ${milli(two.parts.exchange)}, almost all of it what a call takes however small, and the ` +
          `launches of kernels take ${milli(two.parts.launches)} as before. Predicted, not measured.`;
      },
    }), this.panel);
  }

  config(name) { return modelConfig(this.data.models[name]); }

  machine({ device, link, captured = true }) {
    const { devices, links, rates, engine, products } = this.data;
    return { device: devices[device], link: links[link], engine, products,
      rates: { ...rates, captures_stages: captured } };
  }

  buildPanel() {
    const { data } = this, { scenario } = data, oninput = () => this.update();
    const select = (name, options) => html("select", { name, onchange: oninput }, ...options.map(([value, label]) =>
      html("option", { value, selected: value === scenario[name] }, label)));
    const range = (name, min, max) => html("input", { type: "range", name, min, max, step: 1,
      value: Math.log2(scenario[name]), oninput });
    this.inputs = {
      model: select("model", Object.keys(data.models).map((name) => [name, name])),
      device: select("device", Object.entries(data.devices).map(([name, device]) => [name, device.name.split(",")[0]])),
      link: select("link", Object.entries(data.links).map(([name, link]) => [name, link.name])),
      gpus: select("gpus", GPUS.map((count) => [count, count])),
      batch: range("batch", 0, MOST_BATCH), context: range("context", ...CONTEXTS),
      captured: html("input", { type: "checkbox", name: "captured", checked: true, onchange: oninput }),
    };
    const i = this.inputs;
    this.labels = { batch: html("b"), context: html("b") };
    this.chart = svg("svg", { class: "chart", role: "img" });
    this.rows = html("tbody");
    this.refused = html("p", { class: "note refused" });
    this.choice = html("p", { class: "choice" });
    const heads = [["layout"], ["a token"], ["tokens/s"], ["weights, each", "wide"], ["room, tokens", "wide"], ["most of it is"]];
    this.panel.append(
      html("div", { class: "row" }, field("model", i.model), field("GPU", i.device), field("how many", i.gpus),
        field("between them", i.link)),
      html("div", { class: "controls" }, ...Object.entries({ batch: "requests that decode together",
        context: "tokens of each" }).map(([name, title]) => html("label", {}, `${title} `, this.labels[name], i[name]))),
      html("label", { class: "check" }, i.captured, "stages replay graphs, as quire's do"),
      this.choice, this.chart,
      html("div", { class: "keys" }, ...[...DEVICE_PARTS, "host"].map((name) =>
        key(name === "host" ? "waiting: host, other stages" : PARTS[name][0], PARTS[name][1]))),
      html("table", { class: "layouts" }, html("thead", {}, html("tr", {}, ...heads.map(([title, name = null]) =>
        html("th", { scope: "col", class: name }, title)))), this.rows),
      this.refused,
      html("p", { class: "note" }, "TP: ranks that share every matrix; EP: they keep whole experts, each its own; PP: stages " +
        "that share the layers; DP: copies that share the requests. Weights and cache of 16 bits. A model of the " +
        `engine: its parts were measured alone, on one H200 (${data.products.source} and others), and the sums of two ranks ` +
        `and of four. Assumed: ${data.links[scenario.link].assumed.join("; ")}; what a command takes for each request; on the ` +
        "H100, as large a share of the data sheet as on the H200; that experts are chosen evenly, and their products " +
        "take what others of as many rows do. Of layouts of several GPUs these were measured, on H200s: of Qwen3-8B TP2, PP2, " +
        "DP2, TP4 and TP2 PP2, of Qwen3-32B TP2."));
    this.panel.hidden = false;
    this.update(false);
  }

  /** What the form says. */
  settings() {
    const i = this.inputs;
    return { model: i.model.value, device: i.device.value, link: i.link.value, gpus: Number(i.gpus.value),
      batch: 2 ** Number(i.batch.value), context: 2 ** Number(i.context.value), captured: i.captured.checked };
  }

  update(announce = true) {
    const asked = this.settings(), config = this.config(asked.model), machine = this.machine(asked);
    for (const [name, label] of Object.entries(this.labels)) {
      label.textContent = number(asked[name]);
      this.inputs[name].setAttribute("aria-valuetext", name === "batch" ? requests(asked.batch)
        : `${number(asked.context)} tokens`);
    }
    const found = [], refused = [];
    for (const layout of layouts(asked.gpus, config.moe !== null)) {
      try {
        found.push(steady(config, layout, machine, asked.batch, asked.context));
      } catch (error) {
        refused.push(`${nameOf(layout)}: ${error.message}.`);
      }
    }
    found.sort((a, b) => b.tokensPerS - a.tokensPerS || a.layout.tensor - b.layout.tensor);
    this.rows.replaceChildren(...found.map((each) => html("tr", {},
      html("th", { scope: "row" }, nameOf(each.layout)), html("td", {}, milli(each.seconds)),
      html("td", {}, number(Math.round(each.tokensPerS))),
      html("td", { class: "wide" }, amount(each.memory.weights, "B")),
      html("td", { class: "wide" }, amount((each.numBlocks - 1) * machine.engine.block_size * each.layout.data, "")),
      html("td", {}, PARTS[each.bottleneck][0]))));
    this.refused.textContent = refused.length ? `Not possible: ${refused.join(" ")}` : "";
    this.choice.textContent = this.best(found, asked);
    this.draw(found);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.choice.textContent), 600);
  }

  /** Which layouts come first, in words. */
  best(found, { batch }) {
    if (!found.length) return "No layout is possible: the model, or its cache, does not fit.";
    const most = found[0], quickest = found.reduce((a, b) => (b.seconds < a.seconds ? b : a));
    const words = (each) => `${nameOf(each.layout)}, ${milli(each.seconds)} a token, ` +
      `${number(Math.round(each.tokensPerS))} tokens a second, most of it ${PARTS[each.bottleneck][0]}`;
    return most === quickest ? `${requests(batch)}: the best is ${words(most)}.`
      : `${requests(batch)}: the shortest step has ${words(quickest)}; the most tokens has ${words(most)}.`;
  }

  disconnectedCallback() { clearTimeout(this.saying); }

  draw(found) {
    const height = found.length * ROW + BOTTOM, longest = Math.max(...found.map(({ seconds }) => seconds), 1e-9);
    const x = (seconds) => LEFT + (seconds / longest) * (WIDTH - LEFT - RIGHT);
    this.chart.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.chart.setAttribute("aria-label", `Milliseconds a token by layout: ${found.map((each) =>
      `${nameOf(each.layout)} ${milli(each.seconds)}`).join(", ") || "none is possible"}.`);
    const bars = found.flatMap((each, row) => {
      let done = 0;
      const parts = [...DEVICE_PARTS.map((name) => [name, each.parts[name]]),
        ["host", Math.max(0, each.seconds - each.parts.device)]];
      return [svg("text", { x: 0, y: row * ROW + BAR - 3 }, nameOf(each.layout)),
        ...parts.map(([name, seconds]) => {
          const begin = done;
          done += seconds;
          return svg("rect", { class: `part ${name}`, x: x(begin), y: row * ROW, height: BAR,
            width: x(done) - x(begin), style: `fill: ${PARTS[name][1]}` });
        })];
    });
    const bottom = found.length * ROW;
    this.chart.replaceChildren(...bars, svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }),
      svg("text", { x: LEFT, y: bottom + 16, "text-anchor": "middle" }, "0"),
      ...(found.length ? [svg("text", { x: WIDTH - RIGHT, y: bottom + 16, "text-anchor": "end" },
        `${milli(longest)} a token`)] : []));
  }
}

customElements.define("quire-layout-planner", LayoutPlanner);
