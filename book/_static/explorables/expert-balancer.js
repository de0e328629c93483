/* <quire-expert-balancer>: put the experts of a layer, and copies of them, onto ranks.
 *
 * The loads are recorded ones of quire-mini-moe (record_experts.py); the placements that the
 * buttons make are those of expert-placement.js, the twin of `quire.parallel.expert_placement`. */

import { Explorable, compare, field, html, key, svg } from "./base.js";
import { contiguous, copiesOf, imbalance, rankLoads, replicated } from "./expert-placement.js";

const WIDTH = 420, LEFT = 46, RIGHT = 44, ROW = 24, BAR = 16, TOP = 16;
const RANKS = [2, 4, 8], SPARES = [0, 1, 2];
const OTHER = { code: "prose", prose: "code" };
const ratio = (value) => value.toFixed(2);
const times = (value) => `${ratio(value)} times the mean`;
const waiting = (value) =>
  `If time follows load, a rank waits ${Math.round(100 * (1 - 1 / value))} % of it on average.`;

class ExpertBalancer extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .chart { max-width: 44rem; }
    svg text { font-size: 11px; } .one { fill: var(--c1); } .copy { fill: var(--c3); }
    .part { stroke: var(--paper); stroke-width: 1; } .mean { stroke: var(--ink); stroke-dasharray: 3 3; }
    svg .inside { fill: var(--paper); }
    @container (max-width: 30rem) { svg text { font-size: 14px; } } /* the chart shrinks there, its words must not */
    .slots { display: flex; flex-wrap: wrap; gap: .3rem; justify-content: flex-start; }
    .slots button { min-width: 2.6rem; padding: .2rem .4rem; touch-action: none; user-select: none; }
    .slots .copied { border-color: var(--c3); border-width: 2px; }
    .slots .empty { border-style: dashed; font-weight: 400; }
    .slots [aria-pressed=true], .slots .over { outline: 3px solid var(--c2); outline-offset: 1px; }
    td.held { text-align: left; }
    .reading b { font-size: 1.15rem; }
    .refused { min-height: 1.5em; }
  `;

  build(data) {
    this.data = data;
    const { layer, kind, ranks } = data.scenario, loads = data.loads[kind][layer];
    const experts = loads.length, mean = loads.reduce((a, b) => a + b) / experts;
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(this.gate({
      question: `A layer of ${data.model} has ${experts} experts. On recorded ${kind} the fullest one of layer ` +
        `${layer} has ${times(Math.max(...loads) / mean)} of its layer. Now ${ranks} ranks hold ` +
        `${experts / ranks} experts each, in the order of their numbers. How many times the ranks' mean is the ` +
        "load of the fullest rank?",
      label: "Fullest rank over mean",
      reveal: (guess) => {
        this.buildPanel();
        const answer = imbalance(contiguous(experts, ranks), loads);
        return `${times(answer)}: ${compare(guess, answer)}. ${waiting(answer)} A rank's other experts dilute the busy one. ` +
          "Lower the number: swap experts, then allow copies.";
      },
    }), this.panel);
  }

  buildPanel() {
    const { scenario } = this.data;
    const select = (name, values, label = (value) => value) => html("select", { name, onchange: () => this.reset() },
      ...values.map((value) => html("option", { value, selected: value === scenario[name] }, label(value))));
    this.inputs = {
      kind: select("kind", Object.keys(OTHER)),
      layer: select("layer", this.data.loads.code.map((_, layer) => layer)),
      ranks: select("ranks", RANKS),
      spares: select("spares", SPARES),
    };
    const i = this.inputs, make = (name, label) =>
      html("button", { name, onclick: () => this.place(name) }, label);
    this.chart = svg("svg", { class: "chart", role: "img" });
    this.rows = html("tbody");
    this.reading = html("p", { class: "reading" });
    this.bound = html("p", { class: "note bound" });
    this.refused = html("p", { class: "refused", role: "alert" });
    this.panel.append(
      html("div", { class: "row" }, field("text", i.kind), field("layer", i.layer), field("ranks", i.ranks),
        field("spare slots a rank", i.spares)),
      html("div", { class: "row" }, make("contiguous", "By number"), make("replicated", "By load, busiest copied")),
      this.reading, this.chart,
      html("div", {}, key("an expert", "var(--c1)"), " ", key("a copy shares its load", "var(--c3)")),
      html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "rank"),
        html("th", { scope: "col", style: "text-align: left" }, "experts in its slots"),
        html("th", { scope: "col" }, "load"))), this.rows),
      this.refused, this.bound,
      html("p", { class: "note" }, "Choose an expert, then another: they change places. Or drag one onto the other. " +
        "On an empty slot an expert leaves a copy. The Delete key empties the slot of a copy, Escape lets go. " +
        `Loads: tokens that each expert received, counted on held-out text (${this.data.source}).`));
    this.panel.hidden = false;
    this.reset(false);
  }

  get loads() { return this.data.loads[this.inputs.kind.value][Number(this.inputs.layer.value)]; }

  /** Start again, for what the form says. */
  reset(announce = true) { this.place("contiguous", announce); }

  place(how, announce = true) {
    const { loads } = this, ranks = Number(this.inputs.ranks.value), spares = Number(this.inputs.spares.value);
    this.slots = how === "contiguous"
      ? contiguous(loads.length, ranks).map((held) => [...held, ...Array(spares).fill(null)])
      : replicated(loads, ranks, loads.length + ranks * spares);
    this.picked = null;
    this.update(announce);
  }

  /** A slot was chosen: pick up what it holds, or put down there what was picked up. */
  choose(rank, slot) {
    if (this.picked === null) {
      if (this.slots[rank][slot] === null) return this.refuse("This slot is empty: choose an expert first.");
      this.picked = [rank, slot];
      this.say(`Expert ${this.slots[rank][slot]} of rank ${rank} is picked up.`);
      return this.update(false);
    }
    const [from, at] = this.picked;
    this.picked = null;
    this.put(from, at, rank, slot);
  }

  /** Swap two slots, or copy into an empty one; no rank may hold an expert twice. */
  put(from, at, rank, slot) {
    const mine = this.slots[from][at], theirs = this.slots[rank][slot];
    const twice = (expert, onto, instead) =>
      this.slots[onto].some((held, place) => held === expert && place !== instead);
    const twin = [[mine, rank, slot], [theirs, from, at]].find(([expert, onto, instead]) =>
      expert !== null && (from !== rank || theirs === null) && twice(expert, onto, instead));
    if (twin) {
      this.update(false);
      return this.refuse(`Rank ${twin[1]} holds expert ${twin[0]} already: two copies on a rank share its time.`);
    }
    this.slots[rank][slot] = mine;
    if (theirs !== null) this.slots[from][at] = theirs;
    this.update();
    this.button(rank, slot).focus();
  }

  /** Empty the slot of a copy. */
  clear(rank, slot) {
    const expert = this.slots[rank][slot];
    if (expert === null) return;
    if (copiesOf(this.slots, this.loads.length)[expert] === 1) {
      this.refuse(`Expert ${expert} is held once: some rank must have it.`);
      return;
    }
    this.slots[rank][slot] = null;
    this.update();
    this.button(rank, slot).focus();
  }

  refuse(text) {
    this.refused.textContent = text;
  }

  button(rank, slot) { return this.rows.querySelectorAll("tr")[rank].querySelectorAll("button")[slot]; }

  update(announce = true) {
    const { loads, slots } = this, each = rankLoads(slots, loads), now = imbalance(slots, loads);
    const kind = this.inputs.kind.value, other = this.data.loads[OTHER[kind]][Number(this.inputs.layer.value)];
    const mean = each.reduce((a, b) => a + b) / each.length, copies = copiesOf(slots, loads.length);
    const focused = this.shadowRoot.activeElement?.dataset.at;
    this.refused.textContent = "";
    this.reading.replaceChildren("Fullest rank: ", html("b", {}, times(now)), `. ${waiting(now)} The same placement on ${
      OTHER[kind]}: ${times(imbalance(slots, other))}.`);
    const heaviest = Math.max(...loads.map((load, e) => load / copies[e])) / mean;
    this.bound.textContent = heaviest > 1
      ? `An expert alone brings ${times(heaviest)} to its rank: without more copies no placement is below that.`
      : "No expert alone is more than a rank's mean.";
    this.rows.replaceChildren(...slots.map((held, rank) => html("tr", {}, html("th", { scope: "row" }, `${rank}`),
      html("td", { class: "held" }, html("div", { class: "slots" }, ...held.map((expert, slot) =>
        this.slotButton(rank, slot, expert, copies)))), html("td", {}, ratio(each[rank] / mean)))));
    if (focused) this.rows.querySelector(`[data-at="${focused}"]`)?.focus();
    this.draw(each, mean, copies);
    if (announce) this.say(this.reading.textContent);
  }

  slotButton(rank, slot, expert, copies) {
    const picked = this.picked !== null && this.picked[0] === rank && this.picked[1] === slot;
    const name = expert === null ? `rank ${rank}, empty slot`
      : `expert ${expert}${copies[expert] > 1 ? `, one of ${copies[expert]} copies` : ""}, on rank ${rank}`;
    const button = html("button", {
      class: expert === null ? "empty" : copies[expert] > 1 ? "copied" : "", "data-at": `${rank}-${slot}`,
      "aria-pressed": String(picked), "aria-label": name,
      onclick: () => { if (!this.dragged) this.choose(rank, slot); },
      onkeydown: (event) => {
        if (event.key === "Delete" || event.key === "Backspace") this.clear(rank, slot);
        else if (event.key === "Escape") { this.picked = null; this.update(false); }
      },
      onpointerdown: ({ clientX, clientY, pointerId }) => {
        button.setPointerCapture(pointerId); // so that what follows comes here, wherever the pointer is
        this.drag = { x: clientX, y: clientY, over: null, moved: false };
      },
      onpointermove: (event) => this.dragTo(button, event),
      onpointerup: () => this.drop(rank, slot),
      onpointercancel: () => { this.drag = null; },
    }, expert === null ? "+" : `${expert}`);
    return button;
  }

  /** The pointer moved while it was down: from six pixels on that is a drag. */
  dragTo(button, { clientX, clientY, buttons }) {
    const { drag } = this;
    if (!drag || !buttons || button.classList.contains("empty")) return;
    if (!drag.moved && Math.hypot(clientX - drag.x, clientY - drag.y) < 6) return;
    drag.moved = true;
    drag.over?.classList.remove("over");
    drag.over = this.shadowRoot.elementFromPoint(clientX, clientY)?.closest("button[data-at]");
    drag.over?.classList.add("over");
  }

  drop(rank, slot) {
    const { drag } = this;
    this.drag = null;
    if (!drag?.moved) return;
    this.dragged = true; // the click that follows a drag chooses nothing
    setTimeout(() => { this.dragged = false; });
    drag.over?.classList.remove("over");
    const [onto, at] = (drag.over?.dataset.at ?? `${rank}-${slot}`).split("-").map(Number);
    this.picked = null;
    if (onto !== rank || at !== slot) this.put(rank, slot, onto, at);
  }

  draw(each, mean, copies) {
    const { slots, loads } = this, height = TOP + slots.length * ROW, longest = Math.max(...each, mean);
    const x = (load) => LEFT + (load / longest) * (WIDTH - LEFT - RIGHT);
    this.chart.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.chart.setAttribute("aria-label", `Load of each rank over the mean: ${each.map((load, rank) =>
      `rank ${rank} ${ratio(load / mean)}`).join(", ")}.`);
    this.chart.replaceChildren(...slots.flatMap((held, rank) => {
      const y = TOP + rank * ROW;
      let done = 0;
      const parts = held.filter((expert) => expert !== null).flatMap((expert) => {
        const begin = x(done);
        done += loads[expert] / copies[expert];
        const width = x(done) - begin;
        return [svg("rect", { class: `part ${copies[expert] > 1 ? "copy" : "one"}`, x: begin, y, width, height: BAR }),
          ...(width > 18 ? [svg("text", { class: "inside", x: begin + width / 2, y: y + BAR - 4,
            "text-anchor": "middle" }, `${expert}`)] : [])];
      });
      return [svg("text", { x: 0, y: y + BAR - 4 }, `rank ${rank}`), ...parts,
        svg("text", { x: WIDTH, y: y + BAR - 4, "text-anchor": "end" }, ratio(each[rank] / mean))];
    }), svg("line", { class: "mean", x1: x(mean), x2: x(mean), y1: TOP - 4, y2: height }),
    svg("text", { x: x(mean), y: TOP - 6, "text-anchor": "middle" }, "mean"));
  }
}

customElements.define("quire-expert-balancer", ExpertBalancer);
