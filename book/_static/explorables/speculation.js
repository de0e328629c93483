/* The formulas of `quire.analysis.speculation`, and one position of a draft and its
 * verification with the engine's own noise, for the explorables of speculative decoding.
 * Functions have the names and the meaning of the Python ones, in camel case, where they are
 * derived; tests/site/test_speculation_explorables.py holds the two equal. */

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Tokens of a round of k drafts; one acceptance for all, or one for each position. */
export function expectedTokens(acceptance, k) {
  let tokens = 1, reached = 1;
  for (let i = 0; i < k; i += 1) {
    reached *= Array.isArray(acceptance) ? acceptance[i] : acceptance;
    tokens += reached;
  }
  return tokens;
}

/** E / (v + k·c): how many times faster text comes than without drafts. */
export const speedup = (tokens, k, draftCost, verifyCost) => tokens / (verifyCost + k * draftCost);

/** The speed-up at k = 0, 1, …, one for each cost of verification. */
export const speedups = (acceptance, draftCost, verifyCosts) =>
  verifyCosts.map((verifyCost, k) => speedup(expectedTokens(acceptance, k), k, draftCost, verifyCost));

/** The k with the greatest speed-up, the first of equals. */
export function bestK(acceptance, draftCost, verifyCosts) {
  const values = speedups(acceptance, draftCost, verifyCosts);
  return values.indexOf(Math.max(...values));
}

export const totalVariation = (p, q) => sum(p.map((value, i) => Math.abs(value - q[i]))) / 2;

export const rejectionAcceptance = (p, q) => 1 - totalVariation(p, q);

/** Σᵢ 1 / Σⱼ max(pⱼ/pᵢ, qⱼ/qᵢ), as it is written: for a handful of tokens. */
export const coupledAgreement = (p, q) => sum(p.map((_, i) => (p[i] > 0 && q[i] > 0
  ? 1 / sum(p.map((_, j) => Math.max(p[j] / p[i], q[j] / q[i]))) : 0)));

export const agreementBound = (p, q) => (1 - totalVariation(p, q)) / (1 + totalVariation(p, q));

export const independentAgreement = (p, q) => sum(p.map((value, i) => value * q[i]));

export const argmaxAgreement = (p, q) => p[argmax(q)];

/** The index of the largest value, the first of equals. */
export const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** What a draw decides, the numbers of `quire.kernels.noise.Purpose`. */
export const PURPOSE = { token: 1, accept: 2, residual: 3, draft: 4 };

const GOLDEN = 0x9e3779b1;

function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Numbers in (0, 1) at these token ids, keyed by (seed, position, purpose); seed below 2³².
 *
 * The engine's hash to the same 32 bits, as in sampling.js, for every purpose and for the ids
 * of a few tokens instead of a whole vocabulary. */
export function uniform(seed, position, purpose, ids) {
  let key = mix(seed ^ 0x9e3779b9);
  key = mix(key ^ 0x7f4a7c15);
  key = mix(key + Math.imul(position, GOLDEN));
  key = mix(key + purpose);
  return ids.map((id) => Math.min(
    Math.fround(Math.fround(mix(mix(key + Math.imul(id, GOLDEN)) ^ key)) + 0.5) * 2 ** -32, 1 - 2 ** -24));
}

/** What a draw divides its probabilities by: exponential variates, keyed like `uniform`. */
export const exponential = (seed, position, purpose, ids) =>
  uniform(seed, position, purpose, ids).map((value) => -Math.log1p(-value));

/** Each probability over its variate; the token of the longest is drawn. */
const race = (p, noise) => p.map((value, i) => value / noise[i]);

/** How a draft is chosen and judged: a label, the exact share that is kept, and one draw.
 *
 * `draw` takes the target's p, the draft's q, and `noise(purpose)`, which gives a variate a
 * token. It returns the scores of both sides (null: that side made no draw) and the indices of
 * the token that the draft says and of the token that comes out. */
export const RULES = {
  shared: {
    label: "shared noise", exact: coupledAgreement,
    draw: (p, q, noise) => said(race(p, noise("token")), race(q, noise("token"))),
  },
  independent: {
    label: "independent noise", exact: independentAgreement,
    draw: (p, q, noise) => said(race(p, noise("token")), race(q, noise("draft"))),
  },
  argmax: {
    label: "the draft's argmax", exact: argmaxAgreement,
    draw: (p, q, noise) => said(race(p, noise("token")), q),
  },
  rejection: {
    label: "rejection sampling", exact: rejectionAcceptance,
    draw: (p, q, noise, coin) => {
      const draftScores = race(q, noise("draft")), draft = argmax(draftScores);
      const most = Math.min(1, p[draft] / q[draft]);
      if (coin < most) return { draftScores, targetScores: null, draft, target: draft, coin, most };
      const residual = race(p.map((value, i) => Math.max(value - q[i], 0)), noise("residual"));
      return { ...said(residual, draftScores), coin, most };
    },
  },
};

const said = (targetScores, draftScores) =>
  ({ targetScores, draftScores, target: argmax(targetScores), draft: argmax(draftScores) });

/** One draw under a rule of RULES, by the noise of this seed and position. */
export function drawPair(rule, { p, q, ids, position }, seed) {
  const noise = (purpose) => exponential(seed, position, PURPOSE[purpose], ids);
  const [coin] = uniform(seed, position, PURPOSE.accept, [0]);
  return RULES[rule].draw(p, q, noise, coin);
}
