/* <quire-latency-calculator>: TTFT, TPOT, throughput and price of a workload, at the roofline.
 *
 * The formulas are analysis.js, the twin of `quire.analysis`; models and devices come from
 * the data file, and any other model from a pasted config.json. */

import { countParameters, kvBytesPerToken, modelConfig, predict, ridgePoint, shortDtype }
  from "./analysis.js";
import { Explorable, amount, compare, field, html, key, number, svg } from "./base.js";

const DTYPES = ["fp32", "bf16", "fp16", "fp8", "int8", "int4"];
const WIDTH = 360, HEIGHT = 220, LEFT = 30, RIGHT = 14, TOP = 18, BOTTOM = 34;

function duration(seconds) {
  const [scale, unit] = seconds < 999.5e-6 ? [1e6, "µs"] : seconds < 0.9995 ? [1e3, "ms"] : [1, "s"];
  return `${number(Number((seconds * scale).toPrecision(3)))} ${unit}`;
}

const dollars = (value) => `$${value < 1000 ? value.toPrecision(3) : number(value)}`;

class LatencyCalculator extends Explorable {
  static css = `
    .controls { display: grid; gap: .9rem; }
    .results { display: grid; gap: 1rem; }
    @container (min-width: 40rem) { .results { grid-template-columns: 1fr 1fr; } }
    .results > * { min-width: 0; }
    select { width: 100%; } .row label { min-width: 0; }
    .row input[type=number] { width: 6.2rem; }
    textarea { width: 100%; min-height: 7rem; font-family: ui-monospace, monospace; }
    .roof { fill: none; stroke: var(--ink); stroke-width: 2; }
    .guide { stroke: var(--rule); stroke-dasharray: 3 3; }
    .bar { height: 22px; }
  `;

  build(data) {
    this.data = data;
    this.panel = html("div", { hidden: true });
    const { question, scenario } = data;
    this.app.append(
      this.gate({
        question: question.text,
        label: question.label,
        reveal: (guess) => {
          this.buildPanel(scenario);
          const answer = this.compute().throughputOfOne;
          return `${number(Number(answer.toPrecision(3)))} tokens a second: ${compare(guess, answer)}. ` +
            question.explanation;
        },
      }),
      this.panel,
    );
  }

  buildPanel(scenario) {
    const option = (value, label, selected) => html("option", { value, selected }, label);
    const onchange = () => this.update();
    const select = (name, options, chosen) => html("select", { name, onchange },
      ...options.map(([value, label]) => option(value, label, value === chosen)));
    const count = (name, value, least = 1) => html("input", { type: "number", name, value,
      min: least, step: 1, required: true, oninput: onchange });
    const share = (name, value) => html("input", { type: "number", name, value, min: 0.01, max: 1,
      step: 0.01, oninput: onchange });
    const models = Object.keys(this.data.models).map((name) => [name, name]);
    const devices = Object.entries(this.data.hardware).map(([key, device]) => [key, device.name]);
    const dtypes = DTYPES.map((dtype) => [dtype, dtype]);
    this.inputs = {
      model: select("model", [...models, ["paste", "paste a config.json …"]], scenario.model),
      hardware: select("hardware", devices, scenario.hardware),
      batch: count("batch", scenario.batch),
      prompt: count("prompt", scenario.prompt_tokens),
      output: count("output", scenario.output_tokens, 2),
      weight: select("weight-dtype", dtypes, scenario.weight_dtype),
      kv: select("kv-dtype", dtypes, scenario.kv_dtype),
      mfu: share("mfu", 1), mbu: share("mbu", 1),
      overhead: html("input", { type: "number", name: "overhead", value: 0, min: 0, step: 1,
        oninput: onchange }),
      paste: html("textarea", { name: "config", spellcheck: "false", oninput: onchange,
        placeholder: '{ "architectures": ["LlamaForCausalLM"], … }' }),
    };
    const i = this.inputs;
    this.pasteField = field("config.json of a Llama, Mistral, Mixtral, Qwen2, Qwen3 or Qwen3-MoE", i.paste);
    this.error = html("p", { class: "error", role: "alert" });
    this.times = html("tbody");
    this.memoryText = html("p", { class: "note" });
    this.memoryBar = svg("svg", { class: "bar", viewBox: "0 0 400 22", preserveAspectRatio: "none",
      "aria-hidden": "true" });
    this.roofline = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.results = html("div", { class: "results" },
      html("div", {}, html("table", {}, this.times)),
      html("div", {}, this.roofline, this.memoryBar, this.memoryText));
    this.panel.append(html("div", { class: "controls" },
      html("div", { class: "row" }, field("model", i.model), field("device", i.hardware)),
      this.pasteField,
      html("div", { class: "row" }, field("batch", i.batch), field("prompt tokens", i.prompt),
        field("output tokens", i.output), field("weights", i.weight), field("KV cache", i.kv)),
      html("details", {}, html("summary", {}, "Efficiency of a real engine"),
        html("div", { class: "row" }, field("MFU", i.mfu), field("MBU", i.mbu),
          field("overhead, µs a step", i.overhead)),
        html("p", { class: "note" }, "At 1, 1 and 0 a step takes what its bytes and operations " +
          "need at these ceilings. A measured engine's shares turn that into an estimate.")),
      this.error, this.results));
    this.panel.hidden = false;
    this.update();
  }

  /** The workload of the form and what `analysis.js` predicts of it. */
  compute() {
    const i = this.inputs;
    const raw = i.model.value === "paste" ? JSON.parse(i.paste.value) : this.data.models[i.model.value];
    const config = modelConfig(raw);
    const hardware = this.data.hardware[i.hardware.value];
    const workload = {
      batch: i.batch.valueAsNumber, promptTokens: i.prompt.valueAsNumber,
      outputTokens: i.output.valueAsNumber, weightDtype: shortDtype(i.weight.value),
      kvDtype: shortDtype(i.kv.value), mfu: i.mfu.valueAsNumber, mbu: i.mbu.valueAsNumber,
      stepOverheadS: i.overhead.valueAsNumber * 1e-6,
    };
    const prediction = predict(config, hardware, workload);
    return { config, hardware, workload, prediction, throughputOfOne: 1 / prediction.tpot };
  }

  update() {
    this.pasteField.hidden = this.inputs.model.value !== "paste";
    this.results.hidden = false;
    this.error.textContent = "";
    if (!this.pasteField.hidden && !this.inputs.paste.value.trim()) {
      this.results.hidden = true;
      return;
    }
    try {
      const result = this.compute();
      this.result = result;
      this.showTimes(result);
      this.showMemory(result);
      this.showRoofline(result);
    } catch (error) {
      this.results.hidden = true;
      this.error.textContent = error instanceof SyntaxError
        ? `This is not valid JSON: ${error.message}` : error.message;
    }
    clearTimeout(this.saying);
    this.saying = setTimeout(() => this.say(this.summary ?? ""), 600);
  }

  showTimes({ config, hardware, workload, prediction: p }) {
    const rows = [
      ["parameters", amount(countParameters(config).total, "")],
      ["KV cache a token", amount(kvBytesPerToken(config, workload.kvDtype), "B")],
      ["TTFT", duration(p.ttft)],
      ["TPOT", duration(p.tpot)],
      ["request latency", duration(p.latency)],
      ["output throughput", `${number(Math.round(p.throughput))} tok/s`],
      ["per 10⁶ output tokens", dollars(p.usdPerMillion)],
      ["energy per output token", amount(p.joules, "J")],
      ["prefill bound by", p.prefillBound],
      ["decode bound by", p.decodeBound],
    ];
    this.times.replaceChildren(...rows.map(([label, value]) =>
      html("tr", {}, html("th", { scope: "row" }, label), html("td", {}, value))));
    this.summary = `TTFT ${duration(p.ttft)}, TPOT ${duration(p.tpot)}, ` +
      `${number(Math.round(p.throughput))} tokens a second on ${hardware.name}` +
      (p.memory.fits ? "." : "; but it does not fit in memory.");
  }

  showMemory({ hardware, prediction: { memory: m } }) {
    const scale = 400 / Math.max(m.total, m.capacity);
    let x = 0;
    const parts = [[m.weights, "var(--c1)"], [m.kvCache, "var(--c3)"],
      [m.activations + m.logits, "var(--c5)"]];
    const bars = parts.map(([bytes, colour]) => {
      const bar = svg("rect", { class: "moves", x, y: 3, width: bytes * scale, height: 16,
        style: `fill: ${colour}` });
      x += bytes * scale;
      return bar;
    });
    this.memoryBar.replaceChildren(
      svg("rect", { x: 0.5, y: 0.5, width: m.capacity * scale - 1, height: 21, fill: "none",
        stroke: "var(--muted)" }), ...bars);
    this.memoryText.replaceChildren(
      key(`weights ${amount(m.weights, "B")}`, "var(--c1)"), " ",
      key(`KV cache ${amount(m.kvCache, "B")}`, "var(--c3)"), " ",
      key(`workspace ${amount(m.activations + m.logits, "B")}`, "var(--c5)"),
      html("br"), `${amount(m.total, "B")} of ${amount(m.capacity, "B")} of memory. `,
      m.fits ? `Up to ${number(m.maxBatch)} such sequences fit.`
        : `It does not fit on one ${hardware.name}; the times hold only if it did.`);
  }

  showRoofline({ hardware, prediction: p }) {
    const peak = hardware.peak_flops[p.computeDtype], bandwidth = hardware.bandwidth_bytes_per_s;
    const ridge = ridgePoint(hardware, p.computeDtype);
    const points = [["prefill", p.prefill, "var(--c2)"], ["decode", p.decode, "var(--c1)"]]
      .map(([name, work, colour]) => ({ name, colour, intensity: work.flops / work.bytesMoved }));
    const low = Math.min(0.1, ...points.map((point) => point.intensity / 2));
    const high = Math.max(1e4, ...points.map((point) => point.intensity * 2));
    const rate = (intensity) => Math.min(peak, intensity * bandwidth);
    const x = (value) => LEFT + (Math.log(value / low) / Math.log(high / low)) * (WIDTH - LEFT - RIGHT);
    const floor = rate(low);
    const y = (value) => HEIGHT - BOTTOM -
      (Math.log(value / floor) / Math.log(peak / floor)) * (HEIGHT - TOP - BOTTOM);
    const marks = points.flatMap(({ name, colour, intensity }) => [
      svg("circle", { cx: x(intensity), cy: y(rate(intensity)), r: 5, style: `fill: ${colour}` }),
      svg("text", { x: Math.min(x(intensity) + 5, WIDTH - RIGHT - 84), y: y(rate(intensity)) + 19,
        style: "font-weight: 600" }, `${name} ${number(Number(intensity.toPrecision(3)))}`)]);
    this.roofline.setAttribute("aria-label", `Roofline of ${hardware.name} in ${p.computeDtype}: ` +
      points.map((point) => `${point.name} at ${number(point.intensity)} FLOPs per byte`).join(", ") +
      `; the ridge is at ${number(ridge)}.`);
    this.roofline.replaceChildren(
      svg("line", { class: "guide", x1: x(ridge), x2: x(ridge), y1: TOP, y2: HEIGHT - BOTTOM }),
      svg("polyline", { class: "roof", points: [low, ridge, high]
        .map((intensity) => `${x(intensity)},${y(rate(intensity))}`).join(" ") }),
      svg("text", { x: LEFT, y: TOP - 5 }, `attainable (log): ${amount(peak, "FLOP/s")}, ${p.computeDtype}`),
      svg("text", { x: x(ridge) + 4, y: HEIGHT - BOTTOM - 6, style: "fill: var(--muted)" },
        `ridge ${number(Math.round(ridge))}`),
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 10, "text-anchor": "end" },
        "FLOPs per byte (log)"),
      ...marks);
  }
}

customElements.define("quire-latency-calculator", LatencyCalculator);
