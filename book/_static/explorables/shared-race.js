/* <quire-shared-race>: how often do target and draft say the same token?
 *
 * The data holds the log-probabilities of quire-mini and of its draft for a few tokens that
 * may come next. Rules, formulas and noise are speculation.js, the twin of
 * `quire.analysis.speculation` and of the engine's noise: a seed draws here the token that
 * quire-mini draws with it, if it may choose from these tokens alone. */

import { Explorable, compare, field, html, key, number, svg, visible } from "./base.js";
import { softmax } from "./sampling.js";
import { RULES, agreementBound, drawPair, totalVariation } from "./speculation.js";

const ROUND = 100; // draws of the opening question, and of a button
const LAST_SEED = 2 ** 32;
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

class SharedRace extends Explorable {
  static css = `
    pre { white-space: pre-wrap; margin: 0; }
    .pairs { list-style: none; margin: 0; padding: 0; max-width: 34rem; }
    .pairs li { display: grid; grid-template-columns: 5.5rem 1fr 1fr; gap: .25rem .75rem; align-items: center;
      margin-top: .25rem; }
    .pairs .head { color: var(--muted); font-size: .875rem; }
    .meter { display: flex; align-items: center; gap: .4rem; }
    .meter i { height: .7rem; background: var(--colour); min-width: 1px; }
    .panel > * + * { margin-top: 1rem; }
    .race { table-layout: fixed; } .race svg { height: 1.5rem; }
    .race :is(th, td) { padding-block: .15rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
    .race .token { width: 5.5rem; } .race .number, .race .said { width: 4.8rem; }
    .race td.bars, .race th.bars { text-align: left; padding-inline: .25rem; }
    .race tr.same { background: color-mix(in srgb, var(--c3) 14%, transparent); }
    .target { fill: var(--c1); } .draft { fill: var(--c2); }
    .outcome { min-height: 3em; }
    .tally tr.chosen th { color: var(--c1); }
    @container (max-width: 34rem) { .race .number { display: none; } }
    @container (max-width: 24rem) { .race .token { width: 3.6rem; } .race .said { width: 4.5rem; }
      .pairs li { grid-template-columns: 4rem 1fr 1fr; } }
  `;

  build(data) {
    this.data = data;
    const [asked] = data.cases;
    this.choose(asked, 1);
    const pairs = this.pairs(asked);
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(pairs, this.gate({
      question: `One random number is drawn for each of these ${asked.ids.length} tokens. The target divides ` +
        "its probabilities by these numbers and says the token of the largest quotient, and so does the draft: " +
        `its own probabilities, the same numbers. In how many of ${ROUND} such draws do the two say the same token?`,
      label: `Draws with the same token, of ${ROUND}`,
      reveal: (guess) => {
        pairs.remove();
        this.buildPanel();
        const { shared, independent } = this.same;
        return `${shared}: ${compare(guess, shared)}. The exact probability is ` +
          `${percent(RULES.shared.exact(this.pair.p, this.pair.q))}. With random numbers of its own, the draft ` +
          `says the target's token in ${independent} of these draws. Either way each of the two draws its own ` +
          "distribution exactly; only the numbers that they share differ.";
      },
    }), this.panel);
  }

  /** The two distributions, before anything is drawn. */
  pairs({ text, tokens }) {
    const { p, q } = this.pair, top = Math.max(...p, ...q);
    const meter = (share, colour) => html("span", { class: "meter" },
      html("i", { style: `--colour: ${colour}; width: ${(60 * share) / top}%` }), percent(share));
    return html("div", { class: "panel" },
      html("p", {}, `${this.data.target_model} (the target) and ${this.data.draft_model} have both read this text. ` +
        `Of the tokens that may come next, we keep the ${tokens.length} that the two together find likeliest:`),
      html("pre", { class: "mono note" }, text),
      html("ul", { class: "pairs" },
        html("li", { class: "head" }, html("span", {}, "token"), key("target", "var(--c1)"), key("draft", "var(--c2)")),
        ...tokens.map((token, i) => html("li", {}, html("code", {}, visible(token)),
          meter(p[i], "var(--c1)"), meter(q[i], "var(--c2)")))));
  }

  buildPanel() {
    const restart = () => this.restart();
    this.caseSelect = html("select", { name: "case", onchange: restart },
      ...this.data.cases.map(({ name }, i) => html("option", { value: i }, name)));
    this.ruleSelect = html("select", { name: "rule", onchange: () => this.show(true) },
      ...Object.entries(RULES).map(([name, { label }]) => html("option", { value: name }, label)));
    this.temperature = html("input", { type: "range", name: "temperature", min: 0.1, max: 2, step: 0.1, value: 1,
      oninput: restart });
    this.temperatureLabel = html("span");
    this.seed = html("input", { type: "number", name: "seed", min: 0, max: LAST_SEED - 1, step: 1, value: 0 });
    this.text = html("pre", { class: "mono note" });
    this.outcome = html("p", { class: "outcome" });
    this.rows = html("tbody");
    this.tallyRows = html("tbody");
    this.bound = html("p", { class: "note" });
    const head = (...titles) => html("thead", {}, html("tr", {}, ...titles.map(([title, name = null]) =>
      html("th", { scope: "col", class: name }, title))));
    this.panel.append(
      html("div", { class: "row" }, field("text read", this.caseSelect), field("rule", this.ruleSelect)),
      html("label", {}, this.temperatureLabel, this.temperature), this.text,
      html("p", { class: "row note" }, key("target, p", "var(--c1)"), key("draft, q", "var(--c2)"),
        "in the draw, the longest bar of a colour is said"),
      html("table", { class: "race" }, head(["token", "token"], ["p and q", "bars"], ["p", "number"],
        ["q", "number"], ["this draw", "bars"], ["said by", "said"]), this.rows),
      this.outcome,
      html("div", { class: "row" }, field("next seed", this.seed),
        html("button", { onclick: () => this.draw(1) }, "Draw, next seed"),
        html("button", { onclick: () => this.draw(ROUND) }, `Draw ${ROUND}`)),
      html("table", { class: "tally" }, head(["rule"], ["same token"], ["share"], ["exact"]), this.tallyRows),
      this.bound,
      html("p", { class: "note" }, "Every rule draws with the same seeds, and quire's noise keyed by seed, position " +
        "and purpose. Under rejection sampling the target draws only after a draft was refused, from what p has " +
        "more than q. Under all four the tokens that come out are distributed as p says; the draft's argmax needs " +
        "no noise, so it is kept exactly when the target draws it."));
    this.panel.hidden = false;
    this.restart(false);
  }

  /** Set the two distributions at a temperature, as softmax after division gives them. */
  choose(chosen, temperature) {
    const at = (logits) => softmax(logits.map((value) => value / temperature));
    this.case = chosen;
    this.pair = { p: at(chosen.target), q: at(chosen.draft), ids: chosen.ids, position: chosen.position };
  }

  /** New distributions: the tallies begin again, with the first hundred seeds. */
  restart(announce = true) {
    this.choose(this.data.cases[Number(this.caseSelect.value)], this.temperature.valueAsNumber);
    this.temperatureLabel.textContent = `temperature ${this.temperature.valueAsNumber.toFixed(1)}`;
    this.text.textContent = this.case.text;
    this.draws = 0;
    this.same = Object.fromEntries(Object.keys(RULES).map((rule) => [rule, 0]));
    this.seed.value = 0;
    this.draw(ROUND, false);
    clearTimeout(this.saying);
    if (announce) this.saying = setTimeout(() => this.say(this.summary()), 500);
  }

  disconnectedCallback() { clearTimeout(this.saying); }

  draw(count, announce = true) {
    const first = Number.isInteger(this.seed.valueAsNumber) ? Math.abs(this.seed.valueAsNumber) : 0;
    for (let i = 0; i < count; i += 1) {
      this.drawn = (first + i) % LAST_SEED;
      for (const rule of Object.keys(RULES)) {
        const { target, draft } = drawPair(rule, this.pair, this.drawn);
        this.same[rule] += target === draft;
      }
    }
    this.draws += count;
    this.seed.value = (first + count) % LAST_SEED;
    this.show(announce, count > 1);
  }

  summary() {
    const rule = this.ruleSelect.value;
    return `${RULES[rule].label}: the same token in ${number(this.same[rule])} of ${number(this.draws)} draws; ` +
      `exactly ${percent(RULES[rule].exact(this.pair.p, this.pair.q))}.`;
  }

  show(announce, many = false) {
    const { p, q } = this.pair, rule = this.ruleSelect.value, drawn = drawPair(rule, this.pair, this.drawn);
    this.rows.replaceChildren(...this.case.tokens.map((token, i) => this.row(token, i, drawn)));
    this.outcome.textContent = this.describe(rule, drawn);
    this.tallyRows.replaceChildren(...Object.entries(RULES).map(([name, { label, exact }]) =>
      html("tr", { class: name === rule ? "chosen" : null }, html("th", { scope: "row" }, label),
        html("td", {}, `${number(this.same[name])} of ${number(this.draws)}`),
        html("td", {}, percent(this.same[name] / this.draws)), html("td", {}, percent(exact(p, q))))));
    this.bound.textContent = `The total variation distance of the two is ${totalVariation(p, q).toFixed(3)}. Shared ` +
      `noise agrees at least (1 − TV)/(1 + TV) = ${percent(agreementBound(p, q))} of the time; a draft that is ` +
      "drawn from q is kept at most 1 − TV.";
    if (announce) this.say(many ? this.summary() : this.outcome.textContent);
  }

  describe(rule, { target, draft, coin, most }) {
    const name = (i) => `“${visible(this.case.tokens[i])}”`;
    const says = `Seed ${this.drawn}: the draft says ${name(draft)}`;
    if (rule !== "rejection") {
      return `${says}, the target ${name(target)}: ${target === draft ? "the same, kept" : "different, refused"}.`;
    }
    const odds = `the coin ${coin.toFixed(3)} is ${coin < most ? "below" : "not below"} ` +
      `min(1, p/q) = ${most.toFixed(3)}`;
    return `${says}; ${odds}: ${coin < most ? "kept" : `refused, and ${name(target)} comes instead`}.`;
  }

  row(token, i, { targetScores, draftScores, target, draft }) {
    const { p, q } = this.pair, kept = target === draft && target === i;
    const bars = (values, tops, labels) => html("td", { class: "bars" },
      svg("svg", { viewBox: "0 0 100 20", preserveAspectRatio: "none", role: "img", "aria-label": labels },
        ...["target", "draft"].flatMap((side, at) => (values[at] == null ? [] : [svg("rect",
          { class: side, x: 0, y: 2 + 9 * at, width: (100 * values[at]) / tops[at], height: 7 })]))));
    const scores = [targetScores?.[i], draftScores[i]];
    const words = ["target", "draft"].flatMap((side, at) =>
      (scores[at] == null ? [] : [`${side} ${scores[at].toFixed(3)}`]));
    // Where the draft draws nothing its bars are probabilities, not quotients: a scale of their own.
    const longest = [targetScores ?? [0], draftScores].map((values) => Math.max(...values));
    const tops = draftScores === q ? longest : longest.fill(Math.max(...longest));
    const top = Math.max(...p, ...q);
    const said = [target === i && targetScores && "target", draft === i && "draft"].filter(Boolean);
    return html("tr", { class: kept ? "same" : null },
      html("th", { scope: "row", class: "mono", title: visible(token) }, visible(token)),
      bars([p[i], q[i]], [top, top], `target ${percent(p[i])}, draft ${percent(q[i])}`),
      html("td", { class: "number" }, percent(p[i])), html("td", { class: "number" }, percent(q[i])),
      bars(scores, tops, words.join(", ")),
      html("td", {}, said.length === 2 ? "both" : said.join("")));
  }
}

customElements.define("quire-shared-race", SharedRace);
