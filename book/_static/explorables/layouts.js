/* The step of a batch that decodes on several GPUs, for the layout planner: the formulas of
 * `quire.analysis.shares`, `step_parts`, `rank_memory` and `layout_clock`. Functions have the names
 * and the meaning of the Python ones, in camel case, where they are explained;
 * tests/site/test_parallelism_explorables.py holds the two equal. Left out: prompts, formats of 8
 * and 4 bits, experts. A layout is { tensor, pipeline, data }. */

import { interpolate } from "./queueing.js";

export const DEVICE_PARTS = ["weights", "arithmetic", "cache", "rows", "launches", "exchange"];
const sum = (values) => values.reduce((total, value) => total + value, 0);
const divisors = (number) => Array.from({ length: number }, (_, i) => i + 1).filter((n) => number % n === 0);

/** Every layout of so many GPUs, possible for a model or not. */
export const layouts = (gpus) => divisors(gpus).flatMap((tensor) => divisors(gpus / tensor).map(
  (pipeline) => ({ tensor, pipeline, data: gpus / tensor / pipeline })));

/** TP2 PP2, DP4; of one GPU "1 GPU". */
export function nameOf({ tensor, pipeline, data }) {
  const sizes = [["TP", tensor], ["PP", pipeline], ["DP", data]];
  return sizes.filter(([, size]) => size > 1).map((pair) => pair.join("")).join(" ") || "1 GPU";
}

/** A rank's heads and columns; throws in words why there are none. */
function localConfig(c, size) {
  if (c.numHeads % size) throw new Error(`${c.numHeads} heads are not shared evenly by ${size} ranks`);
  if (c.intermediateSize % size) {
    throw new Error(`${c.intermediateSize} columns are not shared evenly by ${size} ranks`);
  }
  if (c.numKvHeads % size && size % c.numKvHeads) {
    throw new Error(`${c.numKvHeads} KV heads are neither shared nor copied evenly by ${size} ranks`);
  }
  return { ...c, numHeads: c.numHeads / size, numKvHeads: Math.max(1, Math.floor(c.numKvHeads / size)),
    intermediateSize: c.intermediateSize / size };
}

/** Layers of each stage, so that none reads more than it must; the head counts as layers. */
export function splitLayers(c, stages) {
  const layers = c.numLayers;
  if (stages > layers) throw new Error(`${layers} layers are fewer than ${stages} stages`);
  if (stages === 1) return [layers];
  const width = c.headSize * (c.numHeads + c.numKvHeads);
  const biases = (c.numHeads + 2 * c.numKvHeads) * c.headSize * c.qkvBias + c.hiddenSize * c.outputBias +
    (2 * c.intermediateSize + c.hiddenSize) * c.mlpBias;
  const aLayer = 2 * c.hiddenSize * width + 3 * c.hiddenSize * c.intermediateSize + biases;
  const head = c.vocabSize * c.hiddenSize / aLayer;
  const most = (last) => Math.max(Math.ceil((layers - last) / (stages - 1)), last + head);
  let last = 1;
  for (let n = 2; n <= layers - stages + 1; n += 1) if (most(n) < most(last)) last = n;
  const each = Math.floor((layers - last) / (stages - 1)), rest = (layers - last) % (stages - 1);
  return [...Array.from({ length: stages - 1 }, (_, stage) => each + (stage < rest)), last];
}

/** What the first rank of each stage has of a model. */
export function shares(c, layout) {
  const local = localConfig(c, layout.tensor), stages = splitLayers(c, layout.pipeline);
  return stages.map((layers, stage) => ({ c, local, layout, layers, isFirst: stage === 0,
    isLast: stage === stages.length - 1, vocabRows: Math.ceil(c.vocabSize / layout.tensor) }));
}

/** Weights of the four products of a layer: q k v, o, gate and up, down. */
function weightsRead({ c, local }) {
  const query = local.numHeads * local.headSize, keyValue = local.numKvHeads * local.headSize;
  return [c.hiddenSize * (query + 2 * keyValue), query * c.hiddenSize,
    2 * c.hiddenSize * local.intermediateSize, local.intermediateSize * c.hiddenSize];
}

/** Bytes of the parameters that a rank stores, of 16 bits. */
export function weightBytes(share) {
  const { c, local, layers, isFirst, isLast } = share;
  const query = local.numHeads * local.headSize, keyValue = local.numKvHeads * local.headSize;
  const attention = (query + 2 * keyValue) * c.qkvBias + c.hiddenSize * c.outputBias;
  const mlp = (2 * local.intermediateSize + c.hiddenSize) * c.mlpBias;
  const norms = 2 * c.hiddenSize + (query + keyValue) * c.qkNorm;
  const tables = Number(isFirst || (c.tied && isLast)) + Number(isLast && !c.tied);
  return 2 * (layers * (sum(weightsRead(share)) + attention + mlp + norms) + c.hiddenSize +
    tables * share.vocabRows * c.hiddenSize);
}

export const kvBytesPerToken = ({ local, layers }) => layers * 4 * local.numKvHeads * local.headSize;

/** Bytes on a rank's device, and the blocks that have room beside them; as `engine` is set. */
export function rankMemory(share, device, engine) {
  const { c, local, layout, isLast } = share;
  const width = c.hiddenSize + Math.max(2 * local.intermediateSize,
    2 * (local.numHeads + local.numKvHeads) * local.headSize);
  const weights = weightBytes(share), activations = engine.most_tokens * width * 2;
  const logits = isLast ? 6 * engine.most_requests * c.vocabSize : 0;
  const reserved = engine.reserved_bytes + (layout.tensor * layout.pipeline > 1 ? engine.communicator_bytes : 0);
  const block = engine.block_size * kvBytesPerToken(share), budget = engine.utilization * device.memory_bytes;
  const numBlocks = Math.max(0, Math.floor((budget - weights - activations - logits - reserved) / block));
  return { weights, activations, logits, reserved, block, budget, numBlocks };
}

/** Seconds of a sum over `size` ranks, and until each has what every other has. */
export function reduceSeconds({ reduces }, bytes, size) {
  const [, { alpha_s: alpha, bytes_per_s: rate, algorithm }] = reduces.find(([most]) => most === null || bytes <= most);
  return size === 1 ? 0 : alpha + (algorithm === "one-shot" ? size - 1 : 2 * (size - 1) / size) * bytes / rate;
}
export const gatherSeconds = ({ alpha_s: alpha, bytes_per_s: rate }, bytes, size) => (size === 1 ? 0
  : alpha + (size - 1) * bytes / rate);

/** Seconds in which a weight is read, and multiplied by `rows` rows, at the device's ceilings. */
const ceilings = (device, rows) => [2 / device.bandwidth, 2 * rows / device.rate];

const launchSeconds = (rates, rows) =>
  rates.launch_s + Math.min(Math.log2(Math.max(rows, 1)), 5) * rates.launch_doubling_s;

/** What a step that adds a token to each of `batch` contexts takes on each rank of a stage. */
export function stepParts(share, batch, context, { device, link, rates, products }) {
  const { c, local, layout, layers, isFirst, isLast, vocabRows } = share;
  const [memory, arithmetic] = ceilings(device, batch), reference = ceilings(products.device, batch);
  const aWeight = interpolate(products.points, batch) * Math.max(memory, arithmetic) / Math.max(...reference);
  const head = isLast ? vocabRows * c.hiddenSize : 0;
  const multiplied = aWeight * (layers * sum(weightsRead(share)) + head);
  const widths = 8 * c.hiddenSize + 3 * local.intermediateSize +
    2 * (local.numHeads + 2 * local.numKvHeads) * local.headSize;
  const numReduces = layout.tensor > 1 ? 2 * layers + isFirst : 0;
  const captured = layout.pipeline === 1 || rates.captures_stages;
  let host = rates.host_step_s + rates.host_row_s * batch, begin = 0;
  if (layout.tensor * layout.pipeline > 1) host += rates.rank_step_s + rates.rank_row_s * batch;
  if (!captured) {
    begin = rates.eager_step_s;
    host += layers * rates.host_layer_s + (numReduces + (layout.pipeline > 1)) * link.eager_call_s;
  } else if (layout.pipeline > 1) [begin, host] = [host, 0];
  const parts = {
    weights: memory >= arithmetic ? multiplied : 0,
    arithmetic: memory >= arithmetic ? 0 : multiplied,
    cache: batch * context * kvBytesPerToken(share) / device.bandwidth,
    rows: (batch * layers * widths + (isLast ? batch * c.vocabSize : 0)) * 2 / device.bandwidth,
    launches: (4 * layers + isLast) * launchSeconds(rates, batch) + layers * rates.layer_s + rates.step_s,
    exchange: numReduces * reduceSeconds(link, batch * c.hiddenSize * 2, layout.tensor) +
      (isLast ? gatherSeconds(link.other, batch * vocabRows * 2, layout.tensor) : 0),
  };
  const busy = sum(DEVICE_PARTS.map((name) => parts[name]));
  return { ...parts, host, begin, device: busy, seconds: begin + Math.max(busy, host) };
}

/** The name of the largest part of a step. */
const largest = (parts) => (parts.host > parts.device ? "host"
  : DEVICE_PARTS.reduce((a, b) => (parts[b] > parts[a] ? b : a)));

/** Step, memory and tokens a second of `batch` contexts under a layout; throws why it is not possible. */
export function steady(c, layout, machine, batch, context) {
  const stages = shares(c, layout), { engine, link } = machine;
  const memories = stages.map((share) => rankMemory(share, machine.device, engine));
  const numBlocks = Math.min(...memories.map((memory) => memory.numBlocks));
  const own = Math.ceil(batch / layout.data), blocks = Math.ceil(context / engine.block_size);
  const seats = Math.max(0, Math.floor((numBlocks - 1) / blocks));
  if (seats < own) throw new Error(`a copy has room for ${seats} of its ${own} contexts`);
  const numGroups = Math.min(layout.pipeline, own), size = Math.ceil(own / numGroups);
  const parts = stages.map((share) => stepParts(share, size, context, machine));
  const slowest = parts.reduce((a, b) => (b.seconds > a.seconds ? b : a));
  const send = link.other.alpha_s + size * c.hiddenSize * 2 / link.other.bytes_per_s;
  const passage = parts.slice(1).reduce(
    (done, part) => Math.max(done + send + part.device, part.begin + part.host), parts[0].seconds);
  const seconds = Math.max(passage, numGroups * slowest.seconds);
  const bubble = seconds > 1.05 * numGroups * slowest.seconds;
  return { layout, memory: memories.reduce((a, b) => (b.weights > a.weights ? b : a)), numBlocks, seconds,
    parts: slowest, bottleneck: bubble ? "bubble" : largest(slowest), tokensPerS: batch / seconds };
}
