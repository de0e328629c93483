/* The formulas of `quire.analysis`, for the latency calculator. Each function has the name
 * and the meaning of the Python one (src/quire/analysis/), in camel case, where they are
 * derived; tests/site/test_explorables.py holds the two equal to one part in 10⁹. */

export const DTYPE_BYTES = { fp32: 4, bf16: 2, fp16: 2, fp8: 1, int8: 1, fp4: 0.5, int4: 0.5 };
const LONG_NAMES = { float32: "fp32", bfloat16: "bf16", float16: "fp16" };
const sum = (values) => values.reduce((total, value) => total + value, 0);

export function shortDtype(dtype) {
  const name = LONG_NAMES[dtype] ?? dtype;
  if (!(name in DTYPE_BYTES)) throw new Error(`dtype “${dtype}” is not known`);
  return name;
}

// The keys that each architecture reads, and what they are when left out (quire.models.architectures).
const COMMON = { tie_word_embeddings: false, head_dim: null };
const QWEN = { ...COMMON, num_key_value_heads: 32, use_sliding_window: false,
  sliding_window: 4096, max_window_layers: 28, layer_types: null };
const SWITCHES = {
  LlamaForCausalLM: { defaults: { ...COMMON, num_key_value_heads: null, attention_bias: false,
    mlp_bias: false } },
  MistralForCausalLM: { windowed: true,
    defaults: { ...COMMON, num_key_value_heads: 8, sliding_window: 4096 } },
  Qwen2ForCausalLM: { qkvBias: true, defaults: QWEN },
  Qwen3ForCausalLM: { qkNorm: true, defaults: { ...QWEN, head_dim: 128, attention_bias: false } },
  MixtralForCausalLM: { windowed: true,
    experts: { countKeys: ["num_experts", "num_local_experts"], widthKey: "intermediate_size" },
    defaults: { ...COMMON, num_key_value_heads: 8, sliding_window: null, intermediate_size: 14336,
      num_experts_per_tok: 2, num_local_experts: 8 } },
  Qwen3MoeForCausalLM: { qkNorm: true, oneWindow: true,
    experts: { countKeys: ["num_local_experts", "num_experts"], widthKey: "moe_intermediate_size",
      choosesLayers: true },
    defaults: { ...COMMON, num_key_value_heads: 4, attention_bias: false, use_sliding_window: false,
      sliding_window: 4096, decoder_sparse_step: 1, mlp_only_layers: null,
      moe_intermediate_size: 768, num_experts: 128, num_experts_per_tok: 8 } },
};

/** A key's value, its default where it is left out; null where the architecture reads no such key. */
const valueOf = (raw, { defaults }, key) =>
  (key in defaults ? (key in raw ? raw[key] : defaults[key]) : null);

function slidingWindows(raw, switches) {
  const layers = raw.num_hidden_layers, value = (key) => valueOf(raw, switches, key);
  const window = value("sliding_window");
  if (switches.windowed) return Array(layers).fill(window);
  if (!value("use_sliding_window")) return Array(layers).fill(null);
  if (switches.oneWindow) return Array(layers).fill(window);
  const kinds = value("layer_types");
  if (kinds) return kinds.map((kind) => (kind === "sliding_attention" ? window : null));
  const first = value("max_window_layers");
  return Array.from({ length: layers }, (_, layer) => (layer >= first ? window : null));
}

/** Layers by window, `[window, how many]`: a step's attention then costs a few additions. */
function windowGroups(windows) {
  const groups = new Map();
  for (const window of windows) groups.set(window, (groups.get(window) ?? 0) + 1);
  return [...groups];
}

/** The mixture of experts that stands in place of some layers' MLP; null where no layer has one. */
function mixture(raw, switches) {
  if (!switches.experts) return null;
  const { countKeys, widthKey, choosesLayers } = switches.experts, value = (key) => valueOf(raw, switches, key);
  const given = countKeys.find((key) => key in raw), count = given ? raw[given] : value(countKeys.at(-1));
  const step = choosesLayers ? value("decoder_sparse_step") : 1, perToken = value("num_experts_per_tok");
  const dense = value("mlp_only_layers") ?? [];
  const layers = Array.from({ length: raw.num_hidden_layers }, (_, i) => i)
    .filter((i) => (i + 1) % step === 0 && !dense.includes(i));
  if (!count || !layers.length) return null;
  if (!(perToken >= 1 && perToken <= count)) throw new Error(`${perToken} experts a token of ${count}`);
  return { count, perToken, width: value(widthKey), layers };
}

/** Layers that have one MLP for every token. */
export const denseLayers = (c) => c.numLayers - (c.moe ? c.moe.layers.length : 0);
/** Gate, up and down of one expert. */
export const expertParameters = (c) => (c.moe ? 3 * c.hiddenSize * c.moe.width : 0);
/** Experts of a layer that a step needs: E · (1 − (1 − k/E)^T). */
export const expertsTouched = ({ moe }, numTokens) =>
  moe.count * (1 - (1 - moe.perToken / moe.count) ** numTokens);

/** The sizes in a transformers `config.json`; throws in words what is wrong with it. */
export function modelConfig(raw) {
  const architecture = raw.architectures?.[0] ?? "missing";
  const switches = SWITCHES[architecture];
  if (!switches) {
    throw new Error(`architecture “${architecture}” is not covered; these are: ` +
      Object.keys(SWITCHES).join(", "));
  }
  for (const key of ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads"]) {
    if (!(Number.isInteger(raw[key]) && raw[key] > 0)) {
      throw new Error(`config.json needs a whole number for “${key}”`);
    }
  }
  const value = (key) => valueOf(raw, switches, key);
  const bias = Boolean(value("attention_bias"));
  return {
    vocabSize: raw.vocab_size,
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size,
    numLayers: raw.num_hidden_layers,
    numHeads: raw.num_attention_heads,
    numKvHeads: value("num_key_value_heads") || raw.num_attention_heads,
    headSize: value("head_dim") || Math.floor(raw.hidden_size / raw.num_attention_heads),
    tied: Boolean(value("tie_word_embeddings")),
    qkvBias: Boolean(switches.qkvBias || bias),
    outputBias: bias,
    mlpBias: Boolean(value("mlp_bias")),
    qkNorm: Boolean(switches.qkNorm),
    windowGroups: windowGroups(slidingWindows(raw, switches)),
    moe: mixture(raw, switches),
    dtype: raw.dtype ?? raw.torch_dtype ?? "float32",
  };
}

/** Gate, up and down of all layers; of a layer's experts so many, by default all, and its router. */
function mlpParameters(c, experts = c.moe?.count) {
  const dense = denseLayers(c) * (3 * c.hiddenSize * c.intermediateSize +
    (2 * c.intermediateSize + c.hiddenSize) * c.mlpBias);
  return c.moe ? dense + c.moe.layers.length * (c.hiddenSize * c.moe.count + experts * expertParameters(c)) : dense;
}

export function countParameters(c) {
  const query = c.numHeads * c.headSize, keyValue = c.numKvHeads * c.headSize;
  const vocabulary = c.vocabSize * c.hiddenSize;
  const attention = c.numLayers * (2 * c.hiddenSize * (query + keyValue) +
    (query + 2 * keyValue) * c.qkvBias + c.hiddenSize * c.outputBias);
  const mlp = mlpParameters(c);
  const norm = c.numLayers * (2 * c.hiddenSize + 2 * c.headSize * c.qkNorm) + c.hiddenSize;
  const head = c.tied ? 0 : vocabulary;
  return { embedding: vocabulary, attention, mlp, norm, head,
    total: vocabulary + attention + mlp + norm + head };
}

export const kvBytesPerToken = (c, dtype) =>
  2 * c.numLayers * c.numKvHeads * c.headSize * DTYPE_BYTES[dtype];

const attendedTokens = (c, context) =>
  sum(c.windowGroups.map(([window, layers]) => layers * Math.min(context, window || context)));

export const kvCacheBytes = (c, context, dtype) =>
  attendedTokens(c, context) * (kvBytesPerToken(c, dtype) / c.numLayers);

function causalPairs(c, numTokens) {
  return sum(c.windowGroups.map(([window, layers]) => {
    const ramp = Math.min(numTokens, window || numTokens);
    return layers * ((ramp * (ramp + 1)) / 2 + (numTokens - ramp) * ramp);
  }));
}

const layerWeights = (c) => c.numLayers * 2 * c.hiddenSize * (c.numHeads + c.numKvHeads) * c.headSize +
  denseLayers(c) * 3 * c.hiddenSize * c.intermediateSize +
  (c.moe ? c.moe.layers.length * (c.hiddenSize * c.moe.count + c.moe.perToken * expertParameters(c)) : 0);
const headFlops = (c) => 2 * c.hiddenSize * c.vocabSize;
const attentionFlops = (c, attended) => 4 * c.numHeads * c.headSize * attended;

function stepWeightBytes(c, numTokens, dtype) {
  const count = countParameters(c);
  const mlp = c.moe ? mlpParameters(c, expertsTouched(c, numTokens)) : count.mlp;
  const read = count.attention + mlp + count.norm + c.vocabSize * c.hiddenSize +
    numTokens * c.hiddenSize;
  return read * DTYPE_BYTES[dtype];
}

export function decodeWork(c, batch, context, weightDtype, kvDtype) {
  const flops = batch * (2 * layerWeights(c) + headFlops(c) +
    attentionFlops(c, attendedTokens(c, context)));
  const kv = batch * kvCacheBytes(c, context, kvDtype) + batch * kvBytesPerToken(c, kvDtype);
  return { flops, bytesMoved: stepWeightBytes(c, batch, weightDtype) + kv };
}

export function prefillWork(c, batch, promptTokens, weightDtype, kvDtype) {
  const numTokens = batch * promptTokens;
  const flops = 2 * layerWeights(c) * numTokens + batch * headFlops(c) +
    batch * attentionFlops(c, causalPairs(c, promptTokens));
  const kv = numTokens * kvBytesPerToken(c, kvDtype);
  return { flops, bytesMoved: stepWeightBytes(c, numTokens, weightDtype) + kv };
}

export function computeDtype(hardware, weightDtype) {
  return [weightDtype, "bf16", "fp16", "fp32"].find((dtype) => dtype in hardware.peak_flops);
}

export const ridgePoint = (hardware, dtype) =>
  hardware.peak_flops[dtype] / hardware.bandwidth_bytes_per_s;

/** Numbers a token keeps at the peak: the residual beside the widest of q k v, of the MLP, of k experts. */
export const activationWidth = (c) => c.hiddenSize + Math.max(2 * (c.numHeads + c.numKvHeads) * c.headSize,
  denseLayers(c) ? 2 * c.intermediateSize : 0, c.moe ? c.moe.perToken * (c.moe.width + c.hiddenSize) : 0);

function memoryLedger(c, capacity, w, dtype) {
  const weights = countParameters(c).total * DTYPE_BYTES[w.weightDtype];
  const activations = w.maxNumBatchedTokens * activationWidth(c) * DTYPE_BYTES[dtype];
  const cache = kvCacheBytes(c, w.promptTokens + w.outputTokens, w.kvDtype);
  const logits = c.vocabSize * DTYPE_BYTES.fp32;
  const room = capacity - weights - activations;
  const ledger = { weights, kvCache: w.batch * cache, activations, logits: w.batch * logits,
    capacity, maxBatch: Math.max(0, Math.floor(room / (cache + logits))) };
  ledger.total = ledger.weights + ledger.kvCache + ledger.activations + ledger.logits;
  ledger.fits = ledger.total <= capacity;
  return ledger;
}

/** Limits of one static batch; see `quire.analysis.predict` for every argument. */
export function predict(c, hardware, workload) {
  const w = { batch: 1, promptTokens: 512, outputTokens: 128, weightDtype: "bf16",
    kvDtype: "bf16", mfu: 1, mbu: 1, stepOverheadS: 0, maxNumBatchedTokens: 2048, ...workload };
  for (const [name, least] of [["batch", 1], ["promptTokens", 1], ["outputTokens", 2]]) {
    if (!(Number.isInteger(w[name]) && w[name] >= least)) {
      throw new Error(`${name}=${w[name]}: give a whole number of at least ${least}`);
    }
  }
  for (const name of ["mfu", "mbu"]) {
    if (!(w[name] > 0 && w[name] <= 1)) throw new Error(`${name}=${w[name]}: give a share in (0, 1]`);
  }
  if (!(w.stepOverheadS >= 0)) throw new Error("the overhead must be 0 or more");
  const dtype = computeDtype(hardware, w.weightDtype);
  const seconds = (work) => Math.max(
    work.flops / (w.mfu * hardware.peak_flops[dtype]),
    work.bytesMoved / (w.mbu * hardware.bandwidth_bytes_per_s)) + w.stepOverheadS;
  const bound = (work) =>
    work.flops / work.bytesMoved > ridgePoint(hardware, dtype) ? "compute" : "memory";
  const prefill = prefillWork(c, w.batch, w.promptTokens, w.weightDtype, w.kvDtype);
  let decode, decodeTime = 0;
  for (let i = 1; i < w.outputTokens; i += 1) {
    decode = decodeWork(c, w.batch, w.promptTokens + i, w.weightDtype, w.kvDtype);
    decodeTime += seconds(decode);
  }
  const ttft = seconds(prefill), latency = ttft + decodeTime;
  const throughput = (w.batch * w.outputTokens) / latency;
  return {
    ttft, tpot: decodeTime / (w.outputTokens - 1), latency, throughput,
    usdPerMillion: (hardware.usd_per_hour / 3600 / throughput) * 1e6,
    joules: hardware.tdp_watts / throughput,
    prefill, prefillBound: bound(prefill), decode, decodeBound: bound(decode),
    computeDtype: dtype,
    memory: memoryLedger(c, hardware.memory_bytes, w, dtype),
  };
}
