/* <quire-speculation-payoff>: with which number of drafts a round does speculation pay?
 *
 * Formulas are speculation.js, the twin of `quire.analysis.speculation`. The data holds, for
 * each batch, what a draft token costs and points [tokens a request, cost of such a step], in
 * steps without drafts; its `how` says where they come from. The points begin with [1, 1] and
 * reach 5 tokens at least, with straight lines between them. A page hands other rows over as
 * another data file. */

import { Explorable, field, html, number, svg } from "./base.js";
import { interpolate } from "./queueing.js";
import { bestK, expectedTokens, speedups } from "./speculation.js";

const WIDTH = 380, HEIGHT = 220, LEFT = 34, RIGHT = 16, TOP = 40, BOTTOM = 32;
const times = (value) => `${value.toFixed(2)} times`;
const requests = (batch) => (batch === 1 ? "one request" : `${batch} requests`);

/** The number of drafts that a guess comes nearest to. */
const nearest = (guess, { verifyCosts }) => Math.min(Math.max(Math.round(guess), 0), verifyCosts.length - 1);

class SpeculationPayoff extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .controls { display: grid; gap: .25rem 1.25rem; }
    @container (min-width: 34rem) { .controls { grid-template-columns: 1fr 1fr; } }
    .controls b { float: right; color: var(--ink); }
    .check { display: flex; gap: .5rem; align-items: center; color: var(--ink); }
    .check input { min-height: 0; margin: 0; accent-color: var(--c1); }
    .row input[type=number] { width: 6.2rem; }
    .axis { stroke: var(--rule); } .even { stroke: var(--muted); stroke-dasharray: 4 3; }
    .curve { fill: none; stroke: var(--c1); stroke-width: 2; } .point { fill: var(--c1); }
    .best { fill: var(--c3); } .yours { fill: none; stroke: var(--c2); stroke-width: 2.5; }
    svg text { font-size: 11.5px; } svg .strong { font-weight: 600; }
  `;

  build(data) {
    this.data = data;
    const { acceptance, batch, loaded_batch: loaded } = data.scenario;
    this.open = [batch];
    const round = this.costs(batch);
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(this.gate({
      question: `On one ${data.device}, a large model verifies what a small one drafts, for ${requests(batch)} at a ` +
        `time. A draft is accepted with probability ${acceptance}, whatever came before it. A draft token takes ` +
        `${round.draftCost.toFixed(2)} of a step of the large model, and a step that verifies four drafts takes ` +
        `${round.verifyCosts[4].toFixed(2)} times as long as one without drafts. How many drafts a round give the ` +
        "greatest speed-up?",
      label: "Drafts a round, k",
      reveal: (guess) => {
        this.buildPanel(nearest(guess, round));
        return `${this.verdict(guess, acceptance, round)} Each further draft takes the same time, and is of use only ` +
          "if all before it were accepted.";
      },
    }), this.panel);
    this.loaded = loaded;
  }

  /** What a round at this batch takes, in steps without drafts: c, and v at k = 0, 1, … */
  costs(batch) {
    const row = this.data.costs.find((each) => each.batch === batch);
    const most = row.verify.at(-1)[0]; // nothing is known of longer steps
    return { draftCost: row.draft,
      verifyCosts: Array.from({ length: most }, (_, k) => interpolate(row.verify, 1 + k)) };
  }

  verdict(guess, acceptance, round) {
    const { draftCost, verifyCosts } = round, yours = nearest(guess, round);
    const values = speedups(acceptance, draftCost, verifyCosts);
    const best = bestK(acceptance, draftCost, verifyCosts);
    const found = `${best}: text comes ${times(values[best])} as fast as without drafts`;
    return yours === best ? `${found}, and you said so.` : `${found}; at your k = ${yours}, ${times(values[yours])}.`;
  }

  buildPanel(k) {
    const oninput = () => this.update();
    const { acceptance } = this.data.scenario;
    const slider = (name, value) => html("input", { type: "range", name, min: 0, max: 1, step: 0.01, value, oninput });
    this.inputs = {
      acceptance: slider("acceptance", acceptance), first: slider("first", acceptance),
      clustered: html("input", { type: "checkbox", name: "clustered", onchange: oninput }),
      batch: html("select", { name: "batch", onchange: oninput }),
      draft: html("select", { name: "draft", onchange: oninput },
        ...[["model", `${this.data.draft_model}, at this batch`], ["free", "n-grams: no model, c = 0"],
          ["own", "a cost of your own"]].map(([value, label]) => html("option", { value }, label))),
      cost: html("input", { type: "number", name: "draft-cost", min: 0, step: 0.01, value: 0.1, oninput }),
      k: html("input", { type: "range", name: "k", min: 0, max: 1, step: 1, oninput }),
    };
    const i = this.inputs;
    const [acceptanceField, firstField, kField] = this.labels = [["acceptance", i.acceptance], ["first", i.first],
      ["k", i.k]].map(([name, input]) => {
      const title = html("span"), value = html("b");
      return { name, title, value, root: html("label", {}, title, " ", value, input) };
    });
    this.firstField = firstField.root;
    this.costField = field("c, in steps", i.cost);
    this.error = html("p", { class: "error", role: "alert" });
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", style: "max-width: 40rem" });
    this.head = html("tr");
    this.rows = html("tbody");
    this.result = html("div", { class: "panel" }, this.chart,
      html("table", {}, html("thead", {}, this.head), this.rows));
    this.second = this.secondGate();
    this.panel.append(
      html("div", { class: "controls" }, acceptanceField.root, this.firstField),
      html("label", { class: "check" }, i.clustered, "errors cluster: a round begins where a draft has just failed"),
      html("div", { class: "row" }, field("requests a step", i.batch), field("who drafts", i.draft), this.costField),
      html("div", { class: "controls" }, kField.root), this.error, this.result, this.second,
      html("p", { class: "note" }, `${this.data.target} on an ${this.data.device}. ${this.data.how} ` +
        `Rows: ${this.data.sources.join(", ")}.`));
    this.panel.hidden = false;
    this.offer(this.open[0]);
    this.update(false, k);
  }

  /** The same pair under load; other batches are shown only after its answer. */
  secondGate() {
    const { acceptance } = this.data.scenario, round = this.costs(this.loaded);
    return this.gate({
      question: `Now ${requests(this.loaded)} share each step. A draft token takes ${round.draftCost.toFixed(2)} of ` +
        `a step, and a step that verifies four drafts of each request ${round.verifyCosts[4].toFixed(2)}. The ` +
        `acceptance stays at ${acceptance}. How many drafts a round are best now? It may be none.`,
      label: "Drafts a round, k", zero: true,
      reveal: (guess) => {
        this.open = this.data.costs.map(({ batch }) => batch);
        this.offer(this.loaded);
        const i = this.inputs, { draftCost, verifyCosts } = this.costs(this.data.scenario.batch);
        i.acceptance.value = i.first.value = acceptance;
        i.clustered.checked = false;
        i.draft.value = "model";
        this.update(false, nearest(guess, round));
        return `${this.verdict(guess, acceptance, round)} Both costs are higher than before: a draft token ` +
          `${round.draftCost.toFixed(2)} steps and not ${draftCost.toFixed(2)}, four drafts to verify ` +
          `${round.verifyCosts[4].toFixed(2)} and not ${verifyCosts[4].toFixed(2)}.`;
      },
    });
  }

  offer(batch) {
    this.inputs.batch.replaceChildren(...this.open.map((value) =>
      html("option", { value, selected: value === batch }, value)));
  }

  /** What the form says, as `best_k` takes it. */
  settings() {
    const i = this.inputs, { draftCost, verifyCosts } = this.costs(Number(i.batch.value));
    const a = i.acceptance.valueAsNumber;
    return { verifyCosts, k: Number(i.k.value),
      acceptance: i.clustered.checked ? verifyCosts.map((_, at) => (at ? a : i.first.valueAsNumber)) : a,
      draftCost: { model: draftCost, free: 0, own: i.cost.valueAsNumber }[i.draft.value] };
  }

  update(announce = true, chosen = null) {
    const i = this.inputs;
    i.k.max = this.costs(Number(i.batch.value)).verifyCosts.length - 1; // a browser lowers k to it
    if (chosen !== null) i.k.value = chosen;
    const { acceptance, draftCost, verifyCosts, k } = this.settings();
    this.firstField.hidden = !i.clustered.checked;
    this.costField.hidden = i.draft.value !== "own";
    const titles = { acceptance: i.clustered.checked ? "later drafts accepted" : "drafts accepted",
      first: "the first draft accepted", k: "your drafts a round, k" };
    for (const { name, title, value } of this.labels) {
      title.textContent = titles[name];
      value.textContent = name === "k" ? k : i[name].valueAsNumber.toFixed(2);
    }
    const wrong = !(draftCost >= 0);
    this.error.textContent = wrong ? "The cost of a draft token must be at least 0 steps." : "";
    this.result.hidden = wrong;
    if (wrong) return;
    const values = speedups(acceptance, draftCost, verifyCosts), best = bestK(acceptance, draftCost, verifyCosts);
    this.head.replaceChildren(...["", `your k = ${k}`, `the best, k = ${best}`].map((title) =>
      html(title ? "th" : "td", title ? { scope: "col" } : {}, title)));
    this.rows.replaceChildren(...[
      ["tokens a round, E", (at) => expectedTokens(acceptance, at).toFixed(2)],
      ["drafts take, k·c", (at) => (at * draftCost).toFixed(2)],
      ["verification takes, v", (at) => verifyCosts[at].toFixed(2)],
      ["speed-up, E / (v + k·c)", (at) => values[at].toFixed(2)],
    ].map(([label, value]) => html("tr", {}, html("th", { scope: "row" }, label),
      html("td", {}, value(k)), html("td", {}, value(best)))));
    this.draw(values, best, k);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.chart.getAttribute("aria-label")), 600);
  }

  disconnectedCallback() { clearTimeout(this.saying); }

  draw(values, best, k) {
    const top = Math.max(1.5, ...values) * 1.04;
    const x = (at) => LEFT + (at / (values.length - 1)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    const anchor = (at) => (at === 0 ? "start" : at > values.length - 3 ? "end" : "middle");
    const steps = Array.from({ length: Math.floor(top / 0.5) }, (_, at) => (at + 1) / 2)
      .filter((value) => top < 3 || Number.isInteger(value));
    this.chart.setAttribute("aria-label", (best === 0 ? "No number of drafts pays: none is best. "
      : `The best is k = ${best}, ${times(values[best])} as fast as without drafts. `) +
      `At your k = ${k} it is ${times(values[k])}.`);
    this.chart.replaceChildren(
      svg("text", { x: 2, y: 12 }, "speed-up; dashed: without drafts"),
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0) }),
      svg("line", { class: "even", x1: LEFT, x2: WIDTH - RIGHT, y1: y(1), y2: y(1) }),
      ...steps.map((value) => svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value))),
      ...values.map((_, at) => svg("text", { x: x(at), y: HEIGHT - 18, "text-anchor": "middle" }, at)),
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "drafts a round, k"),
      svg("polyline", { class: "curve", points: values.map((value, at) => `${x(at)},${y(value)}`).join(" ") }),
      ...values.map((value, at) => svg("circle", { class: at === best ? "best" : "point", cx: x(at), cy: y(value),
        r: at === best ? 5.5 : 3 })),
      svg("circle", { class: "yours", cx: x(k), cy: y(values[k]), r: 8.5 }),
      svg("text", { class: "strong", x: x(best), y: y(values[best]) - 12, "text-anchor": anchor(best) },
        `best: ${values[best].toFixed(2)}`),
      ...(k === best ? [] : [svg("text", { x: x(k), y: y(values[k]) + 22, "text-anchor": anchor(k) }, "your k")]));
  }
}

customElements.define("quire-speculation-payoff", SpeculationPayoff);
