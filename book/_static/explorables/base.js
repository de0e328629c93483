/* What every explorable of the book shares: the fallback, late loading, the prediction gate.
 *
 * An explorable is a custom element with `data-src`, the address of its JSON. The page
 * supplies a static body; it is shown in print, without JavaScript, and until the data is
 * there. Colours come from the site's variables --q-ink, --q-muted, --q-rule, --q-paper
 * and --q-1 … --q-6; where a page has none, from the text colour around. */

const CSS = `
:host { --ink: var(--q-ink, currentColor); --paper: var(--q-paper, transparent);
  --muted: var(--q-muted, color-mix(in srgb, currentColor 72%, transparent));
  --rule: var(--q-rule, color-mix(in srgb, currentColor 28%, transparent));
  --c1: var(--q-1, #2f74b8); --c2: var(--q-2, #c9572a); --c3: var(--q-3, #168a72);
  --c4: var(--q-4, #9a5fb0); --c5: var(--q-5, #a57a00); --c6: var(--q-6, #64748b);
  display: block; margin-block: 1.5rem; color: var(--ink); text-align: left;
  container-type: inline-size; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
.app { border: 1px solid var(--rule); border-radius: 8px; padding: 1rem; font-size: .9375rem;
  font-family: var(--q-sans, inherit); line-height: 1.5; font-variant-numeric: tabular-nums; }
.app > * + * { margin-top: 1rem; }
p { margin: 0; }
.question { font-weight: 600; max-width: 62ch; }
.gate > * + * { margin-top: .75rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem .75rem; align-items: end; }
label { display: block; color: var(--muted); font-size: .875rem; }
label > :is(input, select) { display: block; margin-top: .2rem; color: var(--ink); }
button, input, select, textarea { font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--muted); border-radius: 5px; padding: .3rem .6rem; min-height: 2.25rem;
  max-width: 100%; }
select option { background: Canvas; color: CanvasText; }
input[type=number] { width: 7.5rem; }
input[type=range] { padding: 0; border: 0; accent-color: var(--c1); width: 100%; }
button { cursor: pointer; font-weight: 600; }
button:hover:not(:disabled) { border-color: var(--c1); color: var(--c1); }
button:disabled { opacity: .55; cursor: default; }
:is(button, input, select, textarea, summary, [tabindex]):focus-visible {
  outline: 3px solid var(--c1); outline-offset: 2px; }
.verdict { border-left: 4px solid var(--c2); padding-left: .75rem; max-width: 66ch; }
.error:not(:empty) { border-left: 4px solid var(--c2); padding-left: .75rem; font-weight: 600; }
.note { color: var(--muted); font-size: .875rem; max-width: 66ch; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
code, .mono { font-family: var(--q-mono, ui-monospace, monospace); font-size: .875em; }
.key { white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .75em; height: .75em;
  margin-right: .35em; background: var(--swatch); border: 1px solid var(--rule); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 12px; font-family: inherit; }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
@media print { .app { display: none; } .fallback[hidden] { display: block !important; } }
@media (prefers-reduced-motion: no-preference) { .moves { transition: all .2s ease-out; } }
`;

/** Make an element: `html("p", { class: "note", onclick: f }, "text", child)`. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A legend entry: a swatch of the colour before its label. */
export const key = (label, colour) =>
  html("span", { class: "key", style: `--swatch: ${colour}` }, label);

/** A token as a reader can see it: spaces, line ends and tabs made visible. */
export const visible = (token) =>
  token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

/** A labelled control: `field("batch", html("input", { type: "number" }))`. */
export const field = (label, control) => html("label", {}, label, control);

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** 1234567 → "1,234,567"; at most `digits` significant digits below 1000. */
export function number(value, digits = 3) {
  const whole = Math.abs(value) >= 1000 || Number.isInteger(value);
  const options = whole ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits };
  return value.toLocaleString("en", options);
}

/** With a decimal prefix and three digits: `amount(1.19e9, "B")` → "1.19 GB". */
export function amount(value, unit) {
  const prefixes = ["", "k", "M", "G", "T", "P"];
  let power = 0;
  while (value >= 999.5 && power < prefixes.length - 1) { value /= 1000; power += 1; }
  return `${number(Number(value.toPrecision(3)))} ${prefixes[power]}${unit}`;
}

/** How a prediction compares with the answer, in words. */
export function compare(guess, answer) {
  const ratio = answer / guess;
  if (Math.abs(ratio - 1) < 0.005) return "exactly what you predicted";
  if (Math.abs(ratio - 1) < 0.1) return "within 10 % of your prediction";
  const [times, word] = ratio > 1 ? [ratio, "times"] : [1 / ratio, "times less than"];
  return `${number(times, 2)} ${word} your prediction`;
}

export class Explorable extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    const root = this.attachShadow({ mode: "open" });
    this.app = html("div", { class: "app", hidden: true });
    this.fallback = html("div", { class: "fallback" }, html("slot"));
    this.live = html("p", { class: "sr", role: "status", "aria-live": "polite" });
    root.append(html("style", {}, CSS + (this.constructor.css ?? "")), this.app, this.fallback,
      this.live);
    // Data waits until the figure is near the screen; print and search never need it.
    const near = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      this.load();
    }, { rootMargin: "600px" });
    near.observe(this);
  }

  async load() {
    try {
      const response = await fetch(this.dataset.src);
      if (!response.ok) throw new Error(`${response.status} ${this.dataset.src}`);
      this.build(await response.json());
      this.app.hidden = false;
      this.fallback.hidden = true;
      this.dataset.state = "ready";
    } catch (error) {
      this.dataset.state = "failed";
      this.app.replaceChildren();
      this.app.hidden = true;
      this.fallback.prepend(html("p", { class: "note" },
        `The interactive figure could not be loaded (${error.message}); this is its static form.`));
    }
  }

  /** Say `text` to a screen reader. */
  say(text) { this.live.textContent = text; }

  /** Ask for a number first; `reveal(guess)` returns the verdict and may show the rest.
   *
   * With `choices` the reader picks one of these words instead; `zero` lets 0 be a guess.
   * A prediction is entered once; nothing of the answer is in the page before. */
  gate({ question, label, reveal, choices, zero = false }) {
    const input = choices
      ? html("select", { name: "prediction" }, html("option", { value: "" }, "choose …"),
        ...choices.map((choice) => html("option", { value: choice }, choice)))
      : html("input", { type: "number", min: "0", step: "any", inputmode: "decimal",
        required: true, name: "prediction" });
    const button = html("button", {}, "Commit and reveal");
    const error = html("p", { class: "error", role: "alert" });
    const complaint = choices ? "Choose one: a guess is enough."
      : `Enter a number ${zero ? "of at least" : "greater than"} 0: a rough guess is enough.`;
    const form = html("form", { class: "row", novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      const guess = choices ? input.value : input.valueAsNumber;
      if (choices ? guess === "" : !(guess > 0 || (zero && guess === 0))) {
        error.textContent = complaint;
        input.focus();
        return;
      }
      error.textContent = "";
      const verdict = html("p", { class: "verdict", tabindex: "-1" }, reveal(guess));
      form.replaceWith(verdict);
      verdict.focus({ preventScroll: true });
      this.say(verdict.textContent);
      this.dispatchEvent(new CustomEvent("reveal", { detail: { guess }, bubbles: true }));
    } }, field(label, input), button);
    return html("div", { class: "gate" }, html("p", { class: "question" }, question), form, error);
  }
}
