/* <quire-tiles-and-l2>: the order of a product's tiles, and what a cache of stripes misses.
 *
 * The arithmetic is kernels.js, the twin of `quire.analysis.kernels`; the data holds the sizes of
 * both questions. A stripe is what a tile reads of one matrix; memory hands it over whole. */

import { Explorable, amount, compare, field, html, key, number, svg } from "./base.js";
import { fetchedStripes, fetches } from "./kernels.js";
import { Stepper } from "./stepper.js";

const CELL = 18, EDGE = 34, GAP = 6;
const FETCHED = ["nothing", "one stripe", "both stripes"];
const COLOURS = ["var(--c3)", "var(--c5)", "var(--c2)"];

class TilesAndL2 extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .controls { display: grid; gap: .25rem 1.25rem; }
    @container (min-width: 34rem) { .controls { grid-template-columns: 1fr 1fr; } }
    .controls b { float: right; color: var(--ink); }
    .chart { max-width: 26rem; }
    .tile { fill: none; stroke: var(--rule); } .done { fill: var(--colour); stroke: var(--paper); }
    .now { stroke: var(--ink); stroke-width: 2.5; }
    .stripe { fill: none; stroke: var(--rule); } .cached { fill: var(--c1); fill-opacity: .55; stroke: var(--c1); }
    .used { stroke: var(--ink); stroke-width: 2; }
    svg text { font-size: 11.5px; }
    .orders tr.shown > * { font-weight: 600; }
  `;

  build(data) {
    this.data = data;
    const { tiles, capacity, asked, size, tile, stripe_bytes: bytes } = data;
    this.panel = html("div", { class: "panel", hidden: true });
    this.app.append(this.gate({
      question: `A product of two matrices of ${number(size)} × ${number(size)} numbers is cut into ${tiles} × ${tiles} ` +
        `tiles of ${tile} × ${tile}. A tile reads one stripe of rows and one stripe of columns, ${amount(bytes, "B")} ` +
        `each, and the cache holds ${capacity} stripes; it forgets the one used longest ago. Tiles are computed row ` +
        `by row, or column by column, or in groups of ${asked} rows, down the first column of a group, then down the ` +
        "next. Which order fetches least from memory, and how many times less than row by row?",
      label: "Times less than row by row",
      reveal: (guess) => {
        const plain = this.total(1, capacity), grouped = this.total(asked, capacity), ratio = plain / grouped;
        this.buildPanel();
        return `${number(ratio, 3)} times less, in groups of ${asked} rows: ${compare(guess, ratio)}. Row by row, the ` +
          `stripe of rows stays, but all ${tiles} stripes of columns pass by in every row and none is left when it is ` +
          `wanted again: ${plain} stripes. Column by column it is the same, turned round. In a group, ${asked} stripes ` +
          `of rows stay, and each stripe of columns serves ${asked} tiles before it goes: ${grouped} stripes.`;
      },
    }), this.panel);
  }

  total(group, capacity) { return fetchedStripes(this.data.tiles, this.data.tiles, group, capacity); }

  /** What an order is called. */
  named(group) {
    if (group === 1) return "row by row";
    return group === this.data.tiles ? "column by column" : `in groups of ${group} rows`;
  }

  buildPanel() {
    const { tiles, capacity, asked } = this.data;
    const slider = (name, min, max, value) => html("input", { type: "range", name, min, max, step: 1, value,
      oninput: () => this.change() });
    this.inputs = { group: slider("group", 1, tiles, asked), capacity: slider("capacity", 2, 2 * tiles + 2, capacity) };
    this.labels = { group: html("b"), capacity: html("b") };
    this.free = html("div", { class: "controls", hidden: true },
      html("label", {}, "rows of tiles in a group ", this.labels.group, this.inputs.group),
      html("label", {}, "stripes the cache holds ", this.labels.capacity, this.inputs.capacity));
    this.order = html("select", { name: "order", onchange: () => {
      this.inputs.group.value = this.order.value;
      this.change();
    } }, ...this.data.choices.map((group) => html("option", { value: group }, this.named(group))));
    this.orderField = field("order", this.order);
    this.order.value = asked;
    this.stepper = new Stepper({ last: tiles * tiles, pause: 60, show: (step, announce) => this.show(step, announce) });
    this.stepper.slider.name = "step";
    const edge = EDGE + GAP + tiles * CELL;
    this.chart = svg("svg", { class: "chart", viewBox: `0 0 ${edge + 2} ${edge + 2}`, role: "img" });
    this.cells = Array.from({ length: tiles * tiles }, (_, i) => svg("rect", { class: "tile", width: CELL - 2, height: CELL - 2,
      x: EDGE + GAP + (i % tiles) * CELL, y: EDGE + GAP + Math.floor(i / tiles) * CELL }));
    const across = tiles * CELL - 2, thick = EDGE - 14;
    this.stripes = Object.fromEntries(Array.from({ length: tiles }, (_, i) => [
      [`row ${i}`, svg("rect", { x: 14, y: EDGE + GAP + i * CELL, width: thick, height: CELL - 2 })],
      [`column ${i}`, svg("rect", { x: EDGE + GAP + i * CELL, y: 14, width: CELL - 2, height: thick })]]).flat());
    this.chart.append(svg("text", { x: EDGE + GAP, y: 10 }, "stripes of columns"),
      svg("text", { x: 0, y: 0, transform: `translate(10 ${EDGE + GAP + across}) rotate(-90)` }, "stripes of rows"),
      ...Object.values(this.stripes), ...this.cells);
    this.said = html("p", { class: "said" });
    this.rows = html("tbody");
    const head = html("tr", {}, ...["order", "stripes fetched", "row by row takes"]
      .map((title) => html("th", { scope: "col" }, title)));
    this.panel.append(html("div", { class: "row" }, this.orderField), this.free,
      html("p", { class: "row" }, ...FETCHED.map((label, i) => key(`fetched ${label}`, COLOURS[i])),
        key("in the cache", "var(--c1)")),
      this.chart, this.stepper.buttons, this.stepper.field, this.said,
      html("table", { class: "orders" }, html("thead", {}, head), this.rows), this.secondGate(),
      html("p", { class: "note" }, "The model computes one tile after another. On a GPU a hundred and more run at once and " +
        "walk along their stripes together, so that what they share at one time is read once even without room for it; " +
        "the output also passes through the cache. So the figure shows which order is better and why, not the bytes of a GPU."));
    this.panel.hidden = false;
    this.change(false);
  }

  /** A small cache; both sliders are offered only after its answer. */
  secondGate() {
    const { small, choices, asked, tiles } = this.data;
    return this.gate({
      question: `Now the cache holds ${small} stripes only. Which of these orders fetches least?`,
      label: "Order", choices: choices.map((group) => this.named(group)),
      reveal: (guess) => {
        const totals = choices.map((group) => this.total(group, small)), least = Math.min(...totals);
        const best = choices[totals.indexOf(least)], wide = choices.find((group) => group > asked && group < tiles);
        this.orderField.hidden = true;
        this.free.hidden = false;
        this.inputs.capacity.value = small;
        this.inputs.group.value = best;
        this.change(false);
        const right = guess === this.named(best) ? "as you predicted" : `not ${guess}`;
        return `${least} stripes ${this.named(best)}: ${right}. A group of ${wide} rows needs ${wide} stripes of rows and ` +
          `those of columns beside them, which do not fit; each is forgotten just before it is wanted again: ` +
          `${this.total(wide, small)} stripes, more than row by row (${this.total(1, small)}). A group has to fit the cache.`;
      },
    });
  }

  get group() { return Number(this.inputs.group.value); }

  get capacity() { return Number(this.inputs.capacity.value); }

  change(announce = true) {
    const { tiles } = this.data;
    this.labels.group.textContent = this.group;
    this.labels.capacity.textContent = this.capacity;
    this.inputs.group.setAttribute("aria-valuetext", this.named(this.group));
    this.inputs.capacity.setAttribute("aria-valuetext", `${this.capacity} stripes`);
    this.played = fetches(tiles, tiles, this.group, this.capacity);
    const plain = this.total(1, this.capacity), groups = new Set([...this.data.choices, this.group]);
    this.rows.replaceChildren(...[...groups].sort((a, b) => a - b).map((group) => {
      const total = this.total(group, this.capacity);
      return html("tr", { class: group === this.group ? "shown" : null }, html("th", { scope: "row" }, this.named(group)),
        html("td", {}, total), html("td", {}, `${(plain / total).toFixed(2)}×`));
    }));
    clearTimeout(this.saying);
    this.stepper.stop();
    this.stepper.go(this.stepper.last, false);
    const total = this.total(this.group, this.capacity);
    if (announce) this.saying = setTimeout(() => this.say(`${this.named(this.group)}, cache of ${this.capacity} stripes: ` +
      `${total} stripes fetched, row by row ${plain}.`), 600);
  }

  disconnectedCallback() {
    clearTimeout(this.saying);
    this.stepper?.stop();
  }

  /** The tiles computed after `step` programs, and what the cache holds then. */
  show(step, announce) {
    const { tiles } = this.data, last = this.played[step - 1], cached = new Set(last?.cached);
    for (const cell of this.cells) cell.setAttribute("class", "tile");
    this.played.slice(0, step).forEach(({ row, column, count }, i) => {
      const cell = this.cells[row * tiles + column];
      cell.setAttribute("class", `tile done${i === step - 1 ? " now" : ""}`);
      cell.setAttribute("style", `--colour: ${COLOURS[count]}`);
    });
    for (const [name, stripe] of Object.entries(this.stripes)) {
      const used = last && (name === `row ${last.row}` || name === `column ${last.column}`);
      stripe.setAttribute("class", `stripe${cached.has(name) ? " cached" : ""}${used ? " used" : ""}`);
    }
    const sum = this.played.slice(0, step).reduce((total, { count }) => total + count, 0);
    const from = (missed) => (missed ? "from memory" : "in the cache");
    this.said.textContent = last ? `Tile ${step} of ${tiles * tiles}, row ${last.row + 1}, column ${last.column + 1}: its ` +
      `stripe of rows ${from(last.rowsFetched)}, of columns ${from(last.columnsFetched)}. Fetched so far: ${sum} stripes.`
      : "No tile is computed yet, and the cache is empty.";
    this.chart.setAttribute("aria-label", `${tiles} by ${tiles} tiles ${this.named(this.group)}. ${this.said.textContent}`);
    if (announce) this.say(this.said.textContent);
  }
}

customElements.define("quire-tiles-and-l2", TilesAndL2);
