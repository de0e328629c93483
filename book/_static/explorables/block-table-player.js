/* <quire-block-table-player>: replay a recorded run of the engine in a very small KV cache.
 *
 * The data is a trace of quire itself (record_cache.py): each step's decisions, the block
 * tables with which it runs, and what the block pool did since the step before. The order
 * of the free list follows from these (block-pool.js). */

import { Explorable, compare, html, key, svg } from "./base.js";
import { replay } from "./block-pool.js";
import { Stepper } from "./stepper.js";

const COLUMNS = 4, WIDTH = 84, HEIGHT = 50, GAP = 6, CELL = 9.4;
const list = (words) => (words.length < 2 ? words.join("")
  : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const blocksOf = (ids) => `block${ids.length === 1 ? "" : "s"} ${list(ids)}`;

class BlockTablePlayer extends Explorable {
  static css = `
    .player > * + * { margin-top: 1rem; }
    .ask > * + * { margin-top: 1rem; }
    .events { margin: 0; padding-left: 1.2rem; min-height: 6.2em; }
    .scroll { overflow-x: auto; }
    .block { fill: none; stroke: var(--rule); }
    .block.held { stroke: var(--c1); stroke-width: 1.5; }
    .block.changed { stroke: var(--c2); stroke-width: 3; }
    .cell { fill: none; stroke: var(--rule); }
    .cell.held { fill: var(--c1); } .cell.cached { fill: var(--c3); fill-opacity: .5; }
    svg .id { font-weight: 600; } svg .holders { font-size: 11px; }
    td:nth-child(n + 2), th:nth-child(n + 2) { text-align: left; }
    .free b { color: var(--c3); }
  `;

  build(data) {
    this.data = data;
    this.states = replay(data);
    this.names = Object.fromEntries(data.requests.map(({ id, name }) => [id, name]));
    this.questions = this.findQuestions();
    this.player = html("div", { class: "player", hidden: true });
    const [first, second] = data.requests;
    const hit = data.steps[second.arrives - 1].hits[second.id];
    const held = new Set(Object.values(data.steps[second.arrives - 1].tables).flat()).size;
    this.app.append(this.gate({
      question: `A cache of ${data.num_blocks} blocks, each for ${data.block_size} tokens, is ` +
        `empty. ${first.name} comes with a prompt of ${first.prompt_tokens} tokens, and a step ` +
        `later ${second.name} with one of ${second.prompt_tokens}, of which the first ${hit} ` +
        "are the same. How many blocks do both hold together?",
      label: "Blocks held",
      reveal: (guess) => {
        this.buildPlayer();
        const own = Object.values(data.steps[second.arrives - 1].tables).map((t) => t.length);
        return `${held} blocks: ${compare(guess, held)}. The tables list ${own[0]} and ` +
          `${own[1]}, and ${hit / data.block_size} of them are the same blocks. Step on: ` +
          `${this.questions.length} more questions wait where something is decided.`;
      },
    }), this.player);
  }

  /** What is asked before which step, computed from the trace: kind, text and answer. */
  findQuestions() {
    const { requests, steps } = this.data, found = [], kinds = new Set();
    const add = (step, kind, question) => {
      if (kinds.has(kind) && kind !== "hit") return;
      kinds.add(kind);
      found.push({ step, kind, ...question });
    };
    steps.forEach((step, i) => {
      const number = i + 1, before = this.states[i];
      for (const id of step.preempted) {
        const running = Object.keys(steps[i - 1].tables).map((each) => this.names[each]);
        add(number, "preempt", { label: "Who gives way", choices: running, answer: this.names[id],
          text: `Step ${number}: a request fills its last block and needs another. None is free. ` +
            "Which request gives its blocks up and waits?",
          why: "the last one that arrived: it has the least to lose and everyone before it goes on. " +
            "Its blocks stay findable until someone needs them." });
      }
      for (const [source] of step.copies) {
        const child = Object.keys(step.tables).at(-1);
        const shared = Object.values(steps[i - 1].tables).find((table) => table.includes(source));
        add(number, "copy", { label: "Block copied", choices: shared.map(String), answer: `${source}`,
          text: `Step ${number}: ${this.names[child]} continues the same prompt as the request that ` +
            `holds ${blocksOf(shared)}, and begins by sharing these. Which one must be copied ` +
            "before both write on?",
          why: "it is only partly filled, so both would write into its next position. A full block " +
            "is never written again and stays shared." });
      }
      for (const [id, hits] of Object.entries(step.hits)) {
        const request = requests.find((each) => each.id === id);
        if (hits === 0 || step.copies.length || request === requests[1]) continue;
        const known = step.tokens[id];
        const back = steps.slice(0, i).some(({ preempted }) => preempted.includes(id));
        add(number, "hit", { label: "Tokens found in the cache", answer: hits,
          text: `Step ${number}: ${this.names[id]} ${back ? "comes back after its preemption"
            : `arrives; its prompt begins like ${this.names[requests[0].id]}'s`}, with ${known} ` +
            "tokens to have in the cache. How many of them need not be computed, because their " +
            "blocks are still there?",
          why: back ? "blocks are given out oldest first, and those at its end were freed first."
            : "nobody held these blocks any more, and nobody had needed their place yet." });
      }
      const candidates = before.free.filter((block) => before.cached.includes(block));
      const sorted = candidates.toSorted((a, b) => a - b);
      const [lost] = this.states[number].forgotten;
      if (candidates.length > 1 && candidates.includes(lost) && !step.finished.length) {
        add(number, "evict", { label: "Block given out", answer: `${lost}`,
          choices: sorted.map(String),
          text: `Step ${number}: a request needs one more block. Free are ${blocksOf(sorted)}, ` +
            `and each still caches tokens. Which one is given out?`,
          why: "it has been free the longest. A request frees its blocks from the last to the " +
            "first, so the beginning of a text, which others may share, goes last." });
      }
    });
    return found;
  }

  buildPlayer() {
    const { steps } = this.data;
    this.answered = 0;
    this.ask = html("div", { class: "ask" });
    this.stepper = new Stepper({ last: steps.length, pause: 900,
      limit: () => (this.questions[this.answered]?.step ?? steps.length + 1) - 1,
      show: (step, announce) => this.show(step, announce) });
    this.status = html("p", {});
    this.events = html("ul", { class: "events" });
    this.pool = svg("svg", { role: "img", style: "max-width: 34rem",
      viewBox: `0 0 ${COLUMNS * (WIDTH + GAP)} ${Math.ceil(this.data.num_blocks / COLUMNS) * (HEIGHT + GAP)}` });
    this.free = html("p", { class: "free" });
    this.rows = html("tbody");
    this.player.append(this.ask, this.stepper.buttons, this.stepper.field, this.status, this.events,
      html("p", { class: "row note" }, key("held", "var(--c1)"),
        key("cached, held by nobody", "color-mix(in srgb, var(--c3) 50%, transparent)"),
        key("changed in this step", "var(--c2)")),
      this.pool, this.free,
      html("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Block tables" },
        html("table", {}, html("thead", {}, html("tr", {}, ...["request", "in the cache",
          "block table"].map((title) => html("th", { scope: "col" }, title)))), this.rows)),
      html("p", { class: "note" }, `Recorded on the engine with ${this.data.model}. Cells are ` +
        "positions; letters name who holds a block. The last token of a request is never put in " +
        "the cache, since nothing comes after it."));
    this.player.hidden = false;
    this.stepper.go(0, false);
  }

  disconnectedCallback() { this.stepper?.stop(); }

  /** Put up the question that is due and, at its own step, the last verdict. */
  pose() {
    const due = this.questions[this.answered], { step } = this.stepper;
    const asked = due && step === due.step - 1;
    if (asked && this.posed !== due) {
      this.posed = due;
      this.question = this.gate({ question: due.text, label: due.label, choices: due.choices,
        zero: true, reveal: (guess) => {
          this.answered += 1;
          this.verdict = { step: due.step, gate: this.question };
          this.stepper.go(due.step, false);
          return `${guess === due.answer ? "Yes" : "No"}: ${due.answer}; ${due.why}`;
        } });
    }
    this.ask.replaceChildren(...(this.verdict?.step === step ? [this.verdict.gate] : []),
      ...(asked ? [this.question] : []));
  }

  /** In words what step `k` decided. */
  describe(k) {
    const step = this.data.steps[k - 1], name = (id) => this.names[id], words = [];
    const previous = this.data.steps[k - 2]?.tables ?? {};
    for (const id of step.finished) words.push(`${name(id)} has ended; its blocks are free, the last one first.`);
    for (const id of step.preempted) words.push(`${name(id)} is preempted: its blocks are free, and it waits.`);
    for (const [id, hits] of Object.entries(step.hits)) {
      words.push(`${name(id)} is admitted; ${hits} of its tokens are already in the cache.`);
    }
    for (const [from, to] of step.copies) words.push(`Block ${from} is shared and not full: it is copied to ${to}.`);
    for (const [id, table] of Object.entries(step.tables)) {
      const had = previous[id] ?? [], targets = step.copies.map(([, to]) => to);
      const fresh = table.slice(had.length || Math.floor((step.hits[id] ?? 0) / this.data.block_size))
        .filter((block) => !targets.includes(block));
      if (fresh.length) words.push(`${name(id)} is given ${blocksOf(fresh)}.`);
    }
    const { forgotten } = this.states[k];
    if (forgotten.length) words.push(`What ${blocksOf(forgotten)} cached is forgotten.`);
    for (const id of step.waiting.filter((each) => !step.preempted.includes(each))) {
      const moved = step.operations.some(([operation]) => operation === "acquire") &&
        !Object.keys(step.hits).length;
      words.push(`${name(id)} waits${moved ? "; the look-up for it moves the blocks it would share " +
        "to the end of the free list" : ""}.`);
    }
    return words;
  }

  show(k, announce) {
    const step = this.data.steps[k - 1], last = this.data.steps.length;
    const entries = step?.entries ?? [];
    const computed = entries.reduce((total, entry) => total + entry.tokens, 0);
    this.status.textContent = step
      ? `Step ${k} of ${last} computes ${computed} token${computed === 1 ? "" : "s"}` +
        `${entries.length ? ` of ${list(entries.map((entry) => this.names[entry.id]))}` : ""}.`
      : `Before step 1: ${this.data.num_blocks} free blocks.`;
    const words = step ? this.describe(k) : [];
    this.events.replaceChildren(...words.map((each) => html("li", {}, each)));
    this.drawPool(k);
    this.showFree(k);
    const running = Object.entries(step?.tables ?? {});
    const waiting = (step?.waiting ?? []).map((id) => [id, null]);
    this.rows.replaceChildren(...[...running, ...waiting].map(([id, table]) => html("tr", {},
      html("th", { scope: "row" }, this.names[id]),
      html("td", {}, table ? `${step.tokens[id]} tokens` : "waits"),
      html("td", { class: "mono" }, table ? table.join(" ") : "–"))));
    if (!this.rows.childElementCount) {
      this.rows.append(html("tr", {}, html("td", { colspan: 3 }, "no request")));
    }
    this.pose();
    if (announce) {
      const due = this.questions[this.answered];
      this.say([this.status.textContent, ...words,
        due?.step === k + 1 ? `A question: ${due.text}` : ""].join(" "));
    }
  }

  /** The free list in its order, or by number while the order is what is asked for. */
  showFree(k) {
    const { cached } = this.states[k], asked = this.questions[this.answered];
    const secret = asked?.kind === "evict" && asked.step === k + 1;
    const free = secret ? this.states[k].free.toSorted((a, b) => a - b) : this.states[k].free;
    this.free.replaceChildren(
      `Free${secret ? "" : ", next out first"}: ${free.length ? "" : "none"}`,
      ...free.flatMap((block, i) => [i ? (secret ? ", " : " → ") : "",
        cached.includes(block) ? html("b", {}, `${block} (cached)`) : `${block}`]));
  }

  drawPool(k) {
    const { cached, written } = this.states[k], size = this.data.block_size;
    const tables = Object.entries(this.data.steps[k - 1]?.tables ?? {});
    const holders = (block) => tables.filter(([, table]) => table.includes(block))
      .map(([id]) => this.names[id]);
    const before = this.states[Math.max(k - 1, 0)].free, after = this.states[k].free;
    const given = (this.data.steps[k - 1]?.operations ?? [])
      .flatMap(([operation, blocks]) => (operation === "allocate" ? blocks : []));
    const said = [];
    this.pool.replaceChildren(...written.slice(1).map((filled, i) => {
      const block = i + 1, held = holders(block);
      const state = held.length ? "held" : cached.includes(block) ? "cached" : "";
      const changed = before.includes(block) !== after.includes(block) || given.includes(block);
      const label = held.length ? held.join(" ") : state || "free";
      said.push(`${block} ${label}`);
      const x = (i % COLUMNS) * (WIDTH + GAP) + 2, y = Math.floor(i / COLUMNS) * (HEIGHT + GAP) + 2;
      return svg("g", { transform: `translate(${x} ${y})` },
        svg("rect", { class: `block ${state}${changed ? " changed" : ""}`, width: WIDTH, height: HEIGHT, rx: 4 }),
        svg("text", { class: "id", x: 5, y: 16 }, `${block}`),
        svg("text", { class: "holders", x: WIDTH - 5, y: 16, "text-anchor": "end" }, label),
        ...Array.from({ length: size }, (_, cell) => svg("rect", { x: 4.5 + cell * CELL, y: 27, width: CELL - 1.4,
          height: 15, class: `cell moves ${state && cell < filled ? state : ""}` })));
    }));
    this.pool.setAttribute("aria-label", `Blocks: ${said.join(", ")}.`);
  }
}

customElements.define("quire-block-table-player", BlockTablePlayer);
