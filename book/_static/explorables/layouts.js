/* The step of a batch that decodes on several GPUs, for the layout planner: the formulas of
 * `quire.analysis.shares`, `step_parts`, `rank_memory` and `layout_clock`. Functions have the names
 * and the meaning of the Python ones, in camel case, where they are explained;
 * tests/site/test_parallelism_explorables.py holds the two equal. Left out: prompts, and formats of
 * 8 and 4 bits. A layout is { tensor, pipeline, data, expert }. */

import { activationWidth, countParameters, denseLayers, expertParameters, expertsTouched } from "./analysis.js";
import { interpolate } from "./queueing.js";

export const DEVICE_PARTS = ["weights", "arithmetic", "cache", "rows", "launches", "exchange"];
const sum = (values) => values.reduce((total, value) => total + value, 0);
const divisors = (number) => Array.from({ length: number }, (_, i) => i + 1).filter((n) => number % n === 0);

/** Every layout of so many GPUs, possible for a model or not; `experts`: with those that keep them whole, too. */
export const layouts = (gpus, experts = false) => divisors(gpus).flatMap((tensor) =>
  divisors(gpus / tensor).flatMap((pipeline) => (experts && tensor > 1 ? [1, tensor] : [1]).map(
    (expert) => ({ tensor, pipeline, data: gpus / tensor / pipeline, expert }))));

/** TP2 PP2, DP4; of one GPU "1 GPU". */
export function nameOf({ tensor, pipeline, data, expert }) {
  const sizes = [["TP", tensor], ["PP", pipeline], ["DP", data], ["EP", expert]];
  return sizes.filter(([, size]) => size > 1).map((pair) => pair.join("")).join(" ") || "1 GPU";
}

/** A rank's heads and columns; throws in words why there are none. */
function localConfig(c, size, whole) {
  const counts = [[c.numHeads, "heads"], [denseLayers(c) ? c.intermediateSize : 0, "columns"]];
  if (c.moe) counts.push(whole ? [c.moe.count, "experts"] : [c.moe.width, "columns of an expert"]);
  for (const [count, what] of counts) {
    if (count % size) throw new Error(`${count} ${what} are not shared evenly by ${size} ranks`);
  }
  if (c.numKvHeads % size && size % c.numKvHeads) {
    throw new Error(`${c.numKvHeads} KV heads are neither shared nor copied evenly by ${size} ranks`);
  }
  return { ...c, numHeads: c.numHeads / size, numKvHeads: Math.max(1, Math.floor(c.numKvHeads / size)),
    intermediateSize: Math.floor(c.intermediateSize / size),
    moe: c.moe && !whole ? { ...c.moe, width: c.moe.width / size } : c.moe };
}

/** Layers of each stage, so that none reads more than it must; the head counts as layers. */
export function splitLayers(c, stages) {
  const layers = c.numLayers;
  if (stages > layers) throw new Error(`${layers} layers are fewer than ${stages} stages`);
  if (stages === 1) return [layers];
  const counted = countParameters(c), head = c.vocabSize * c.hiddenSize * layers / (counted.attention + counted.mlp);
  const most = (last) => Math.max(Math.ceil((layers - last) / (stages - 1)), last + head);
  let last = 1;
  for (let n = 2; n <= layers - stages + 1; n += 1) if (most(n) < most(last)) last = n;
  const each = Math.floor((layers - last) / (stages - 1)), rest = (layers - last) % (stages - 1);
  return [...Array.from({ length: stages - 1 }, (_, stage) => each + (stage < rest)), last];
}

/** What the first rank of each stage has of a model. */
export function shares(c, layout) {
  const local = localConfig(c, layout.tensor, layout.expert > 1), stages = splitLayers(c, layout.pipeline);
  let begin = 0;
  return stages.map((layers, stage) => {
    const end = begin + layers, routed = c.moe ? c.moe.layers.filter((i) => i >= begin && i < end).length : 0;
    begin = end;
    return { c, local, layout, layers, routed, dense: layers - routed, isFirst: stage === 0,
      isLast: stage === stages.length - 1, vocabRows: Math.ceil(c.vocabSize / layout.tensor) };
  });
}

/** Products of a layer, { weights, rows }: q k v, o, gate and up, down; of experts the router before the two. */
function weightsRead({ c, local, layout }, numTokens, experts = false) {
  const query = local.numHeads * local.headSize, keyValue = local.numKvHeads * local.headSize;
  const attention = [c.hiddenSize * (query + 2 * keyValue), query * c.hiddenSize];
  const all = (weights, rows) => weights.map((each) => ({ weights: each, rows }));
  if (!experts) {
    const up = c.hiddenSize * local.intermediateSize;
    return all([...attention, 2 * up, up], numTokens);
  }
  const touched = expertsTouched(c, numTokens) / layout.tensor, up = touched * c.hiddenSize * c.moe.width;
  return [...all([...attention, c.moe.count * c.hiddenSize], numTokens),
    ...all([2 * up, up], numTokens * c.moe.perToken / layout.tensor / touched)];
}

/** Numbers between a token's products in a layer of experts: what enters the second, and what leaves it. */
const expertWidth = ({ c, local, layout }) => (c.moe
  ? c.moe.perToken / layout.expert * 2 * (local.moe.width + c.hiddenSize) : 0);

/** Bytes of the parameters that a rank stores, of 16 bits. */
export function weightBytes(share) {
  const { c, local, layout, layers, routed, dense, isFirst, isLast } = share;
  const query = local.numHeads * local.headSize, keyValue = local.numKvHeads * local.headSize;
  const attention = (query + 2 * keyValue) * c.qkvBias + c.hiddenSize * c.outputBias;
  const mlp = (2 * local.intermediateSize + c.hiddenSize) * c.mlpBias;
  const norms = 2 * c.hiddenSize + (query + keyValue) * c.qkNorm;
  const tables = Number(isFirst || (c.tied && isLast)) + Number(isLast && !c.tied);
  const [qkv, o, up, down] = weightsRead(share, 1).map(({ weights }) => weights);
  const experts = c.moe ? c.moe.count * (expertParameters(c) / layout.tensor + c.hiddenSize) : 0;
  return 2 * (layers * (qkv + o + attention + norms) + dense * (up + down + mlp) + routed * experts +
    c.hiddenSize + tables * share.vocabRows * c.hiddenSize);
}

export const kvBytesPerToken = ({ local, layers }) => layers * 4 * local.numKvHeads * local.headSize;

/** Bytes on a rank's device, and the blocks that have room beside them; as `engine` is set. */
export function rankMemory(share, device, engine) {
  const { c, local, layout, isLast } = share;
  const weights = weightBytes(share), activations = engine.most_tokens * activationWidth(local) * 2;
  const logits = isLast ? 6 * engine.most_requests * c.vocabSize : 0;
  const reserved = engine.reserved_bytes + (layout.tensor * layout.pipeline > 1 ? engine.communicator_bytes : 0);
  const block = engine.block_size * kvBytesPerToken(share), budget = engine.utilization * device.memory_bytes;
  const numBlocks = Math.max(0, Math.floor((budget - weights - activations - logits - reserved) / block));
  return { weights, activations, logits, reserved, block, budget, numBlocks };
}

/** What was measured for so many ranks, or for the next smaller number. */
const ofRanks = (measured, size) =>
  measured[Math.max(...Object.keys(measured).map(Number).filter((ranks) => ranks <= Math.max(size, 2)))];

/** Seconds of a sum over `size` ranks, and until each has what every other has. */
export function reduceSeconds({ reduces }, bytes, size) {
  const crossings = (algorithm) => (algorithm === "one-shot" ? size - 1 : 2 * (size - 1) / size);
  const ways = ofRanks(reduces, size).filter(([most]) => most === null || bytes <= most).map(([, way]) => way);
  return size === 1 ? 0 : Math.min(...ways.map((way) => way.alpha_s + crossings(way.algorithm) * bytes / way.bytes_per_s));
}
export function gatherSeconds({ gathers }, bytes, size) {
  const { alpha_s: alpha, bytes_per_s: rate } = ofRanks(gathers, size);
  return size === 1 ? 0 : alpha + (size - 1) * bytes / rate;
}

/** Seconds in which a weight is read, and multiplied by `rows` rows, at the device's ceilings. */
const ceilings = (device, rows) => [2 / device.bandwidth, 2 * rows / device.rate];

const launchSeconds = (rates, rows) =>
  rates.launch_s + Math.min(Math.log2(Math.max(rows, 1)), 5) * rates.launch_doubling_s;

/** What a step that adds a token to each of `batch` contexts takes on each rank of a stage. */
export function stepParts(share, batch, context, { device, link, rates, products }) {
  const { c, local, layout, layers, routed, dense, isFirst, isLast, vocabRows } = share;
  const took = { memory: 0, arithmetic: 0, launches: 0 };
  const add = (number, { weights, rows }) => {
    const [memory, arithmetic] = ceilings(device, rows), reference = ceilings(products.device, rows);
    const aWeight = interpolate(products.points, rows) * Math.max(memory, arithmetic) / Math.max(...reference);
    took[memory >= arithmetic ? "memory" : "arithmetic"] += number * weights * aWeight;
    took.launches += number * launchSeconds(rates, rows);
  };
  if (dense) for (const read of weightsRead(share, batch)) add(dense, read);
  if (routed) for (const read of weightsRead(share, batch, true)) add(routed, read);
  if (isLast) add(1, { weights: vocabRows * c.hiddenSize, rows: batch });
  const widths = layers * (8 * c.hiddenSize + 2 * (local.numHeads + 2 * local.numKvHeads) * local.headSize) +
    dense * 3 * local.intermediateSize + routed * expertWidth(share);
  const numReduces = layout.tensor > 1 ? 2 * layers + isFirst : 0;
  const captured = layout.pipeline === 1 || rates.captures_stages;
  let host = rates.host_step_s + rates.host_row_s * batch, begin = 0;
  if (layout.tensor * layout.pipeline > 1) host += rates.rank_step_s + rates.rank_row_s * batch;
  if (!captured) {
    begin = rates.eager_step_s;
    host += layers * rates.host_layer_s + (numReduces + (layout.pipeline > 1)) * link.eager_call_s;
  } else if (layout.pipeline > 1) [begin, host] = [host, 0];
  const parts = {
    weights: took.memory,
    arithmetic: took.arithmetic,
    cache: batch * context * kvBytesPerToken(share) / device.bandwidth,
    rows: (batch * widths + (isLast ? batch * c.vocabSize : 0)) * 2 / device.bandwidth,
    launches: took.launches + layers * rates.layer_s + rates.step_s,
    exchange: numReduces * reduceSeconds(link, batch * c.hiddenSize * 2, layout.tensor) +
      (isLast ? gatherSeconds(link, batch * (captured ? rates.key_bytes : vocabRows * 2), layout.tensor) : 0),
  };
  const busy = sum(DEVICE_PARTS.map((name) => parts[name]));
  return { ...parts, host, begin, device: busy, seconds: begin + Math.max(busy, host), busy: Math.max(busy, begin + host) };
}

/** The name of the largest part of a step. */
const largest = (parts) => (parts.begin + parts.host > parts.device ? "host"
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
  const slowest = parts.reduce((a, b) => (b.busy > a.busy ? b : a));
  const send = link.sends.alpha_s + size * c.hiddenSize * 2 / link.sends.bytes_per_s;
  const passage = parts.slice(1).reduce(
    (done, part) => Math.max(done + send + part.device, part.begin + part.host), parts[0].seconds);
  const seconds = Math.max(passage, numGroups * slowest.busy);
  const bubble = seconds > 1.05 * numGroups * slowest.busy;
  return { layout, memory: memories.reduce((a, b) => (b.weights > a.weights ? b : a)), numBlocks, seconds,
    parts: slowest, bottleneck: bubble ? "bubble" : largest(slowest), tokensPerS: batch / seconds };
}
