/* <quire-sampler-playground>: reshape a real next-token distribution and draw from it.
 *
 * The data holds quire-mini's logits over its whole vocabulary at a few prompts. The steps
 * and the random numbers are the engine's (sampling.js), so a seed draws the same token. */

import { Explorable, compare, field, html, key, number, svg, visible } from "./base.js";
import { draw, reshape, softmax, unpackLogits } from "./sampling.js";

const ROWS = 16;
const CONTROLS = [
  { key: "temperature", label: "temperature", min: 0, max: 2, step: 0.05, neutral: 1 },
  { key: "minP", label: "min-p", min: 0, max: 0.5, step: 0.01, neutral: 0 },
  { key: "topK", label: "top-k (0: off)", min: 0, max: 100, step: 1, neutral: 0 },
  { key: "topP", label: "top-p", min: 0.05, max: 1, step: 0.01, neutral: 1 },
];

const percent = (p) => (p >= 0.00005 ? `${(100 * p).toFixed(2)} %` : p > 0 ? "< 0.01 %" : "0");

class SamplerPlayground extends Explorable {
  static css = `
    .controls { display: grid; gap: .25rem 1.25rem; grid-template-columns: 1fr; }
    @container (min-width: 34rem) { .controls { grid-template-columns: 1fr 1fr; } }
    .controls .value { color: var(--ink); font-weight: 600; float: right; }
    select { width: 100%; }
    .bars { table-layout: fixed; }
    .bars :is(th, td):nth-child(2) { padding-inline: 0; text-align: left; }
    .bars th, .bars td { padding-block: .1rem; white-space: nowrap; }
    .bars th[scope=row] { overflow: hidden; text-overflow: ellipsis; }
    .bars th:nth-child(n + 3) { width: 5.2rem; } .bars th:nth-child(5) { width: 4.2rem; }
    .bars tr.out th, .bars tr.out td { color: var(--muted); }
    .bars tr.out th { text-decoration: line-through; }
    .before { fill: none; stroke: var(--muted); stroke-dasharray: 3 2; vector-effect: non-scaling-stroke; }
    .after { fill: var(--c1); }
    .drawn .after { fill: var(--c2); }
    .bars svg { height: 1.15rem; }
    @container (max-width: 30rem) { .bars .wide { display: none; } }
  `;

  build(data) {
    this.data = data;
    this.prompts = data.prompts.map((prompt) => {
      const logits = unpackLogits(prompt.logits, data.scale);
      const base = softmax(logits);
      const order = Array.from(base.keys()).sort((a, b) => base[b] - base[a] || a - b);
      return { ...prompt, logits, base, order };
    });
    this.panel = html("div", { hidden: true });
    const { prompt: index, top_p: topP } = data.question;
    const asked = this.prompts[index];
    const nucleus = (prompt) => reshape(prompt.logits,
      { temperature: 1, topK: 0, topP, minP: 0 }).reduce((n, value) => n + (value > -Infinity), 0);
    const answer = nucleus(asked);
    const shown = html("pre", { class: "mono note", style: "white-space: pre-wrap; margin: 0" }, asked.text);
    this.app.append(
      shown,
      this.gate({
        question: `quire-mini has read these ${asked.position} tokens. Its vocabulary has ` +
          `${number(asked.logits.length)}. How many of them does top-p = ${topP} keep ` +
          "as candidates for the next one, at temperature 1?",
        label: "Tokens kept",
        reveal: (guess) => {
          const sizes = this.prompts.map(nucleus);
          shown.remove();
          this.buildPanel(index, topP);
          return `${number(answer)} ${answer === 1 ? "token" : "tokens"}: ${compare(guess, answer)}. ` +
            `At the other prompts below the same setting keeps from ${number(Math.min(...sizes))} ` +
            `to ${number(Math.max(...sizes))}: the size follows the model's certainty.`;
        },
      }),
      this.panel,
    );
  }

  buildPanel(index, topP) {
    this.settings = { temperature: 1, minP: 0, topK: 0, topP };
    this.promptSelect = html("select", { name: "prompt", onchange: () => this.choosePrompt() },
      ...this.prompts.map((prompt, i) => html("option", { value: i, selected: i === index }, prompt.name)));
    this.promptText = html("pre", { class: "mono note", style: "white-space: pre-wrap; margin: 0" });
    this.sliders = CONTROLS.map((control) => this.slider(control));
    this.kept = html("p", {});
    this.rows = html("tbody");
    this.seed = html("input", { type: "number", name: "seed", value: 0, min: 0, max: 4294967295,
      step: 1, oninput: () => this.update() });
    this.drawnText = html("p", { class: "mono" });
    const head = (text, attributes = {}) => html("th", { scope: "col", ...attributes }, text);
    this.panel.append(
      field("prompt", this.promptSelect), this.promptText,
      html("div", { class: "controls" }, ...this.sliders.map((slider) => slider.root)),
      html("div", { class: "row" }, html("button", { onclick: () => this.reset() }, "Neutral settings")),
      this.kept,
      html("table", { class: "bars" }, html("thead", {}, html("tr", {}, head("token"),
        head("probability"), head("after"), head("before", { class: "wide" }),
        head("drawn"))), this.rows),
      html("p", { class: "row note" }, key("after", "var(--c1)"), key("drawn last", "var(--c2)"),
        "dashed outline: before"),
      html("div", { class: "row" }, field("seed", this.seed),
        html("button", { onclick: () => this.drawTokens(1) }, "Draw, next seed"),
        html("button", { onclick: () => this.drawTokens(100) }, "Draw 100")),
      this.drawnText,
      html("p", { class: "note" }, "Order of the steps, as in the engine: temperature, min-p, top-k, " +
        "top-p, then one draw keyed by seed and position. Probabilities are over the whole " +
        `vocabulary; logits are stored to 1/${this.data.scale}. Temperature 0 is greedy.`),
    );
    for (const child of [...this.panel.children].slice(1)) child.style.marginTop = "1rem";
    this.panel.hidden = false;
    this.choosePrompt();
  }

  slider({ key, label, min, max, step, neutral }) {
    const output = html("span", { class: "value" });
    const input = html("input", { type: "range", name: key, min, max, step,
      value: this.settings[key], oninput: () => {
        this.settings[key] = input.valueAsNumber;
        this.tally.clear();
        this.update(true);
      } });
    const root = html("label", {}, `${label} `, output, input);
    return { key, neutral, input, output, root };
  }

  reset() {
    for (const { key, neutral, input } of this.sliders) {
      this.settings[key] = neutral;
      input.value = neutral;
    }
    this.tally.clear();
    this.update(true);
  }

  choosePrompt() {
    this.prompt = this.prompts[Number(this.promptSelect.value)];
    this.promptText.textContent = this.prompt.text;
    this.tally = new Map();
    this.update();
  }

  drawTokens(count) {
    const first = Number.isInteger(this.seed.valueAsNumber) ? this.seed.valueAsNumber : 0;
    for (let i = 0; i < count; i += 1) {
      this.drawn = draw(this.reshaped, (first + i) % 2 ** 32, this.prompt.position);
      this.tally.set(this.drawn, (this.tally.get(this.drawn) ?? 0) + 1);
    }
    this.seed.value = (first + count) % 2 ** 32;
    this.update();
    this.drawnText.textContent = count === 1
      ? `seed ${first} draws “${visible(this.data.vocabulary[this.drawn])}”`
      : `seeds ${first} to ${first + count - 1}: so far ${number(this.tally.size)} different ` +
        (this.tally.size === 1 ? "token" : "tokens");
    this.say(this.drawnText.textContent);
  }

  update(announce = false) {
    const { logits, base, order } = this.prompt;
    this.reshaped = reshape(logits, this.settings);
    this.probabilities = softmax(this.reshaped);
    const kept = this.reshaped.reduce((n, value) => n + (value > -Infinity), 0);
    for (const { key, input, output } of this.sliders) output.textContent = input.value || this.settings[key];
    const mass = base.reduce((sum, p, token) => sum + (this.reshaped[token] > -Infinity ? p : 0), 0);
    this.kept.textContent = `${number(kept)} of ${number(logits.length)} tokens kept; they held ` +
      `${percent(mass)} of the unchanged distribution.`;
    if (this.tally.size === 0) this.drawnText.textContent = "";
    const scale = Math.max(...order.slice(0, ROWS).map((t) => Math.max(base[t], this.probabilities[t])));
    const shown = order.slice(0, ROWS).map((token) => this.row(token, base[token],
      this.probabilities[token], scale));
    const rest = (values) => order.slice(ROWS).reduce((sum, token) => sum + values[token], 0);
    const restDrawn = [...this.tally].filter(([token]) => !order.slice(0, ROWS).includes(token))
      .reduce((sum, [, count]) => sum + count, 0);
    this.rows.replaceChildren(...shown, html("tr", {},
      html("th", { scope: "row" }, "others", html("span", { class: "sr" }, `, ${number(logits.length - ROWS)} tokens`)),
      html("td"),
      html("td", {}, percent(rest(this.probabilities))),
      html("td", { class: "wide" }, percent(rest(base))), html("td", {}, restDrawn || "")));
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.kept.textContent), 500);
  }

  row(token, before, after, scale) {
    const name = visible(this.data.vocabulary[token]);
    const state = [this.reshaped[token] === -Infinity && "out",
      this.tally.size > 0 && token === this.drawn && "drawn"].filter(Boolean).join(" ");
    return html("tr", { class: state }, html("th", { scope: "row", class: "mono", title: name }, name),
      html("td", {}, svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { class: "after", x: 0, y: 2, width: (100 * after) / scale, height: 6 }),
        svg("rect", { class: "before", x: 0, y: 1, width: (100 * before) / scale, height: 8 }))),
      html("td", {}, percent(after)), html("td", { class: "wide" }, percent(before)),
      html("td", {}, this.tally.get(token) ?? ""));
  }
}

customElements.define("quire-sampler-playground", SamplerPlayground);
