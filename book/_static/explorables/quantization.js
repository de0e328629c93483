/* The arithmetic of `quire.quantization.rounding` for one row of weights, and the formulas of
 * `quire.analysis.quantization`, for the explorables of quantization. Functions have the names
 * and the meaning of the Python ones, in camel case, where they are explained;
 * tests/site/test_quantization_explorables.py holds the two equal.
 *
 * A scheme is { kind: "int" | "fp8", bits, groupSize, symmetric, inputs }; groupSize null is the
 * whole row. Weights are float32 numbers, and every quotient is rounded to float32 as there. */

const LARGEST_FP8 = 448, SMALLEST_SCALE = 2 ** -24, SMALLEST_NORMAL_FP8 = 2 ** -6;

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/** The nearest integer, of two that are equally near the even one. */
export function roundHalfEven(value) {
  const below = Math.floor(value), rest = value - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? 1 : 0);
}

/** The nearest multiple of a power of two. */
const roundTo = (value, step) => roundHalfEven(value / step) * step;

/** The step between floating-point numbers of `mantissa` bits around a normal one. */
function stepAt(value, mantissa) {
  const magnitude = Math.abs(value);
  let exponent = Math.floor(Math.log2(magnitude));
  if (2 ** exponent > magnitude) exponent -= 1; // log2 may round up to the next integer
  return 2 ** (exponent - mantissa);
}

/** The nearest bfloat16 of a positive float32 that is no smaller than the smallest scale. */
export const toBfloat16 = (value) => roundTo(value, stepAt(value, 7));

/** The nearest FP8 number (E4M3) of one in −448…448. */
export const toFP8 = (value) => roundTo(value,
  stepAt(Math.max(Math.abs(value), SMALLEST_NORMAL_FP8), 3));

/** The group of each weight. */
export const groupsOf = (weights, { groupSize }) =>
  weights.map((_, i) => Math.floor(i / (groupSize ?? weights.length)));

/** The scale of each group and, of asymmetric integers, its zero; else zeros is null. */
export function grid(weights, scheme) {
  const groups = groupsOf(weights, scheme), levels = 2 ** scheme.bits;
  const scales = [], zeros = [];
  for (let group = 0; group <= groups.at(-1); group += 1) {
    const members = weights.filter((_, i) => groups[i] === group);
    const least = Math.min(0, ...members), most = Math.max(0, ...members);
    const reach = Math.max(-least, most);
    const span = scheme.kind === "fp8" ? reach / LARGEST_FP8
      : scheme.symmetric ? reach / ((levels - 1) / 2) : Math.fround(most - least) / (levels - 1);
    const scale = toBfloat16(Math.max(Math.fround(span), SMALLEST_SCALE));
    scales.push(scale);
    zeros.push(clamp(roundHalfEven(Math.fround(-least / scale)), 0, levels - 1));
  }
  return { scales, zeros: scheme.kind === "fp8" || scheme.symmetric ? null : zeros };
}

/** The nearest code of each weight on a grid: of FP8 the number itself. */
export function roundToGrid(weights, scheme, { scales, zeros }) {
  const groups = groupsOf(weights, scheme), middle = 2 ** (scheme.bits - 1);
  return weights.map((weight, i) => {
    const value = Math.fround(weight / scales[groups[i]]);
    if (scheme.kind === "fp8") return toFP8(clamp(value, -LARGEST_FP8, LARGEST_FP8));
    const zero = zeros ? zeros[groups[i]] : middle;
    return clamp(roundHalfEven(value) + zero, 0, 2 ** scheme.bits - 1);
  });
}

/** The numbers that codes stand for. */
export function dequantize(codes, scheme, { scales, zeros }) {
  const groups = groupsOf(codes, scheme);
  const middle = scheme.kind === "fp8" ? 0 : 2 ** (scheme.bits - 1);
  return codes.map((code, i) =>
    Math.fround((code - (zeros ? zeros[groups[i]] : middle)) * scales[groups[i]]));
}

/** Grid, codes, what they stand for, and the magnitude of each error. */
export function roundToNearest(weights, scheme) {
  const { scales, zeros } = grid(weights, scheme);
  const codes = roundToGrid(weights, scheme, { scales, zeros });
  const values = dequantize(codes, scheme, { scales, zeros });
  return { scales, zeros, codes, values, groups: groupsOf(weights, scheme),
    errors: values.map((value, i) => Math.abs(value - weights[i])) };
}

/** Every number that a group can store, rising: the points of its grid. */
export function points(scheme, scale, zero) {
  if (scheme.kind === "int") {
    const middle = zero ?? 2 ** (scheme.bits - 1);
    return Array.from({ length: 2 ** scheme.bits }, (_, code) => Math.fround((code - middle) * scale));
  }
  const positive = Array.from({ length: 126 }, (_, at) => { // exponent and mantissa, in seven bits
    const bits = at + 1, exponent = bits >> 3, mantissa = bits & 7;
    return exponent ? (1 + mantissa / 8) * 2 ** (exponent - 7) : mantissa * 2 ** -9;
  });
  return [...positive.map((value) => -value).reverse(), 0, ...positive].map((value) => Math.fround(value * scale));
}

/** The bits of a weight with its share of a group's scale and zero; a null scheme is bf16. */
export function bitsAWeight(scheme) {
  if (!scheme) return 16;
  const { bits, groupSize, symmetric } = scheme;
  return groupSize === null ? bits : bits + (16 + (symmetric ? 0 : bits)) / groupSize;
}

/** Overhead, memory, unpacking, and arithmetic a row, in seconds, of one layer's products.
 *
 * `device` has bandwidth, rates by dtype of a product and integerRate, all a second. */
export function layerTime(device, layer, { scheme, product }, launchSeconds, operations) {
  const { weights, products } = layer;
  return { overhead: products * launchSeconds,
    memory: weights * bitsAWeight(scheme) / 8 / device.bandwidth,
    unpacking: scheme?.inputs === "plain" ? weights * operations / device.integerRate : 0,
    perRow: 2 * weights / device.rates[product] };
}

const arithmetic = (time, rows) => time.unpacking + rows * time.perRow;

export const seconds = (time, rows) => time.overhead + Math.max(time.memory, arithmetic(time, rows));

/** Which takes longer, "compute" or "memory"; of equals "memory". */
export const bound = (time, rows) => (arithmetic(time, rows) > time.memory ? "compute" : "memory");

const knee = ({ memory, unpacking, perRow }) => (memory - unpacking) / perRow;

/** The rows, in 1…most, at which the faster of two becomes the slower. */
export function crossings(first, second, most) {
  const knees = [knee(first), knee(second)].filter((rows) => rows > 1 && rows < most);
  const found = [];
  let last = null, equalAt = null;
  for (const rows of [1, ...knees.sort((a, b) => a - b), most]) {
    const difference = seconds(first, rows) - seconds(second, rows);
    if (difference === 0) { equalAt = rows; continue; }
    if (last && last.difference * difference < 0) {
      found.push(equalAt
        ?? last.rows + (rows - last.rows) * last.difference / (last.difference - difference));
    }
    last = { rows, difference };
    equalAt = null;
  }
  return found;
}
