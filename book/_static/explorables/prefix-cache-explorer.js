/* <quire-prefix-cache-explorer>: prompts that begin alike, their blocks, names and hits.
 *
 * A token here is a byte of the prompt's UTF-8, so that the figure needs no tokenizer; the
 * names are those that the engine would give the same token ids (block-hash.js). */

import { Explorable, compare, field, html, key, number, svg } from "./base.js";
import { hex, root, serve } from "./block-hash.js";

const CELL = 11, ROW = 40, TOP = 16;
const LETTERS = "ABC";
const MAX_BYTES = 96; // of a prompt: three rows

/** The bytes of a text, and what to print in each one's cell. */
export function bytesOf(text) {
  const encoder = new TextEncoder(), tokens = [], shown = [];
  for (const character of text) {
    const bytes = encoder.encode(character);
    if (tokens.length + bytes.length > MAX_BYTES) break;
    tokens.push(...bytes);
    shown.push(character.replace(/\s/, "␣"), ...Array(bytes.length - 1).fill("·"));
  }
  return { tokens, shown };
}

class PrefixCacheExplorer extends Explorable {
  static css = `
    .panel > * + * { margin-top: 1rem; }
    .prompt { display: grid; gap: .5rem .75rem; grid-template-columns: minmax(0, 1fr); }
    @container (min-width: 40rem) { .prompt { grid-template-columns: minmax(0, 3fr) minmax(0, 1fr); } }
    .prompt input { width: 100%; }
    pre { margin: 0; white-space: pre-wrap; }
    .cells rect { stroke: var(--rule); fill: none; }
    .cells .hit { fill: var(--c3); fill-opacity: .35; } .cells .full { fill: var(--c2); fill-opacity: .3; }
    .cells .partial { fill: var(--c5); fill-opacity: .3; }
    .cells .frame { stroke: var(--muted); fill: none; stroke-width: 1.3; }
    svg .byte { font: 9.5px var(--q-mono, ui-monospace, monospace); text-anchor: middle; }
    svg .name { font: 9.5px var(--q-mono, ui-monospace, monospace); }
    .first { font-weight: 600; }
  `;

  build(data) {
    this.data = data;
    this.panel = html("div", { class: "panel", hidden: true });
    const [first, second] = this.serveAll(data.prompts, data.block_size);
    const pre = html("pre", { class: "mono note" },
      data.prompts.slice(0, 2).map(({ text }, i) => `${LETTERS[i]}: ${text}`).join("\n"));
    this.app.append(pre, this.gate({
      question: `Prompt A has ${first.tokens.length} tokens (here a token is a byte of the text) ` +
        `and its blocks of ${data.block_size} tokens stay in the cache. Then comes B, with ` +
        `${second.tokens.length}. How many tokens of B are computed?`,
      label: "Tokens computed",
      reveal: (guess) => {
        pre.remove();
        this.buildPanel();
        const same = second.tokens.findIndex((token, i) => token !== first.tokens[i]);
        return `${number(second.computed)} of ${second.tokens.length}: ${compare(guess, second.computed)}. ` +
          `The first ${same} tokens are A's, but only whole blocks are found: ${second.hits} of ` +
          `${data.block_size} tokens each. Change the prompts and the block size below.`;
      },
    }), this.panel);
  }

  serveAll(prompts, blockSize) {
    const read = prompts.map(({ text, salt }) => ({ ...bytesOf(text), extraKeys: salt ? [salt] : [] }));
    const served = serve(read, blockSize);
    return read.map((prompt, i) => ({ ...prompt, ...served[i] }));
  }

  buildPanel() {
    const oninput = () => this.update();
    const { prompts, block_sizes: sizes, block_size: size } = this.data;
    this.inputs = prompts.map(({ text, salt }, i) => ({
      text: html("input", { name: `prompt-${LETTERS[i]}`, value: text, maxlength: MAX_BYTES,
        spellcheck: "false", autocomplete: "off", oninput }),
      salt: html("input", { name: `salt-${LETTERS[i]}`, value: salt, maxlength: 16,
        spellcheck: "false", autocomplete: "off", oninput }),
    }));
    this.size = html("select", { name: "block-size", onchange: oninput },
      ...sizes.map((each) => html("option", { value: each, selected: each === size }, `${each}`)));
    this.drawings = html("div", { class: "panel" });
    this.rows = html("tbody");
    this.total = html("p", {});
    this.panel.append(
      ...this.inputs.map(({ text, salt }, i) => html("div", { class: "prompt" },
        field(`Prompt ${LETTERS[i]}`, text), field(`Cache salt of ${LETTERS[i]}`, salt))),
      field("Tokens in a block", this.size),
      html("p", { class: "row note" },
        key("found in the cache", "color-mix(in srgb, var(--c3) 35%, transparent)"),
        key("computed and named", "color-mix(in srgb, var(--c2) 30%, transparent)"),
        key("computed, block not full: no name", "color-mix(in srgb, var(--c5) 30%, transparent)")),
      this.drawings,
      html("table", {}, html("thead", {}, html("tr", {}, ...["prompt", "tokens", "found",
        "computed"].map((title) => html("th", { scope: "col" }, title)))), this.rows),
      this.total,
      html("p", { class: "note" }, "The prompts are served in this order, from an empty cache with " +
        "room for all. Under each full block stand the first digits of its name, the SHA-256 of " +
        "the name before it and its own tokens; the first name before it is made of the salt. " +
        "Someone without your salt can't find your blocks. The last token is always computed: " +
        "without it there is nothing to sample from. An index over single tokens (a radix tree) " +
        "would find every token up to the first difference."));
    this.panel.hidden = false;
    this.resize = new ResizeObserver(() => { if (this.drawn !== this.perRow()) this.update(false); });
    this.resize.observe(this);
    this.update(false);
  }

  update(announce = true) {
    const blockSize = Number(this.size.value);
    const served = this.serveAll(this.inputs.map(({ text, salt }) =>
      ({ text: text.value, salt: salt.value })), blockSize);
    this.served = served;
    const shared = (i) => Math.max(0, ...served.slice(0, i).map((other) => {
      if (other.extraKeys[0] !== served[i].extraKeys[0]) return 0;
      const tokens = served[i].tokens;
      const end = tokens.findIndex((token, at) => token !== other.tokens[at]);
      return Math.min(end < 0 ? tokens.length : end, tokens.length - 1);
    }));
    this.drawn = this.perRow();
    this.drawings.replaceChildren(...served.map((each, i) => this.draw(each, i, blockSize)));
    this.rows.replaceChildren(...served.map(({ tokens, hitTokens, computed }, i) => html("tr", {},
      html("th", { scope: "row" }, LETTERS[i]), html("td", {}, tokens.length),
      html("td", {}, hitTokens), html("td", {}, tokens.length ? computed : 0))));
    const sum = (values) => values.reduce((total, value) => total + value, 0);
    const all = sum(served.map(({ tokens }) => tokens.length));
    const found = sum(served.map(({ hitTokens }) => hitTokens));
    const lost = sum(served.map(({ tokens, hitTokens }, i) => (tokens.length ? shared(i) - hitTokens : 0)));
    this.total.textContent = `${number(all - found)} of ${number(all)} tokens are computed; ` +
      `${number(lost)} of these stood in an earlier prompt's same beginning, in a block that is ` +
      "not the same to its end.";
    if (!announce) return;
    clearTimeout(this.saying);
    this.saying = setTimeout(() => this.say(served.map(({ hitTokens, tokens }, i) =>
      `${LETTERS[i]}: ${hitTokens} of ${tokens.length} found`).join("; ")), 600);
  }

  connectedCallback() {
    super.connectedCallback();
    this.resize?.observe(this); // moved in the page after it was built
  }

  disconnectedCallback() {
    clearTimeout(this.saying);
    this.resize?.disconnect();
  }

  /** One prompt's blocks in rows of 32 cells, of 16 on a phone; a block may go on below. */
  draw({ tokens, shown, names, hits, extraKeys }, index, size) {
    const perRow = this.perRow(), rows = Math.max(Math.ceil(tokens.length / perRow), 1);
    const place = (i) => [(i % perRow) * CELL, TOP + Math.floor(i / perRow) * ROW];
    const marks = [];
    const rootName = hex(root(extraKeys)).slice(0, 8);
    for (let begin = 0; begin < tokens.length; begin += size) {
      const block = begin / size, end = Math.min(begin + size, tokens.length);
      const state = block < hits ? "hit" : block < names.length ? "full" : "partial";
      for (let i = begin; i < end; i += 1) {
        const [x, y] = place(i);
        marks.push(svg("rect", { class: state, x, y, width: CELL, height: 18 }),
          svg("text", { class: "byte", x: x + CELL / 2, y: y + 13 }, shown[i]));
      }
      for (let i = begin; i < Math.max(end, begin + 1); i += perRow) {
        const [x, y] = place(i), cells = Math.min(size, perRow);
        marks.push(svg("rect", { class: "frame", x, y, width: cells * CELL, height: 18 }));
      }
      const [x, y] = place(Math.max(begin, end - 1 - ((end - 1) % Math.min(size, perRow))));
      marks.push(svg("text", { class: "name", x: x + 2, y: y + 29 },
        block < names.length ? names[block].slice(0, 8) : `${end - begin} of ${size}`));
    }
    const words = `Prompt ${LETTERS[index]}: ${hits} of ${Math.ceil(tokens.length / size)} blocks ` +
      `found; names after ${rootName}: ${names.map((name) => name.slice(0, 8)).join(", ") || "none"}.`;
    return svg("svg", { class: "cells", role: "img", "aria-label": words, style: "max-width: 44rem",
      viewBox: `-1 0 ${perRow * CELL + 2} ${TOP + rows * ROW - 8}` },
    svg("text", { x: 0, y: 11, class: "name" }, `${LETTERS[index]}, after ${rootName}`), ...marks);
  }

  perRow() { return this.clientWidth < 480 ? 16 : 32; }
}

customElements.define("quire-prefix-cache-explorer", PrefixCacheExplorer);
