/* The engine's sampler, for the playground: the steps of src/quire/kernels/sampling.py
 * in the engine's order, and its counter-based noise (noise.py) to the same 32 bits, so
 * that a seed draws here the token that it draws in quire. */

/** Unpack base64 of little-endian int16 fixed point, `scale` steps to 1. */
export function unpackLogits(text, scale) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) / scale);
}

export function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = logits.map((value) => Math.exp(value - top));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

/** Temperature, then min-p, top-k, top-p. A removed token gets -Infinity.
 *
 * Neutral values are temperature 1, minP 0, topK 0, topP 1. Temperature 0 is greedy: the
 * first token of the largest logit alone stays. */
export function reshape(logits, { temperature, topK, topP, minP }) {
  const byLogit = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const out = new Float64Array(logits.length).fill(-Infinity);
  if (temperature === 0) {
    out[byLogit[0]] = logits[byLogit[0]];
    return out;
  }
  const threshold = logits[byLogit[0]] / temperature + Math.log(minP);
  let kept = byLogit.filter((token) => !(logits[token] / temperature < threshold));
  if (topK > 0) kept = kept.slice(0, topK);
  if (topP < 1) {
    const probabilities = softmax(kept.map((token) => logits[token] / temperature));
    let massBefore = 0, size = 0;
    while (size < kept.length && massBefore < topP) massBefore += probabilities[size++];
    kept = kept.slice(0, size);
  }
  for (const token of kept) out[token] = logits[token] / temperature;
  return out;
}

const GOLDEN = 0x9e3779b1;
const PURPOSE_TOKEN = 1;

function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Exponential variates keyed by (seed, position), one a token id; seed below 2³². */
export function exponential(seed, position, width) {
  let key = mix(seed ^ 0x9e3779b9);
  key = mix(key ^ 0x7f4a7c15);
  key = mix(key + Math.imul(position, GOLDEN));
  key = mix(key + PURPOSE_TOKEN);
  return Float64Array.from({ length: width }, (_, lane) => {
    const bits = mix(mix(key + Math.imul(lane, GOLDEN)) ^ key);
    const uniform = Math.min(Math.fround(Math.fround(bits) + 0.5) * 2 ** -32, 1 - 2 ** -24);
    return -Math.log1p(-uniform);
  });
}

/** The token drawn from reshaped logits: the argmax of p / exponential, in logarithms. */
export function draw(reshaped, seed, position) {
  const race = exponential(seed, position, reshaped.length);
  let best = -1, highest = -Infinity;
  reshaped.forEach((logit, token) => {
    const score = logit - Math.log(race[token]);
    if (score > highest) { highest = score; best = token; }
  });
  return best;
}
