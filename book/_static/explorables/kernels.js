/* Twin of quire.analysis.kernels: the order of a product's tiles, what a cache of stripes misses,
 * and the softmax of numbers that arrive in blocks. */

/** Row and column of a program's tile: `group` rows of tiles, column by column. */
export function tileOf(program, down, across, group) {
  const first = Math.floor(program / (group * across)) * group;
  const height = Math.min(down - first, group), inside = program % (group * across);
  return [first + inside % height, Math.floor(inside / height)];
}

/** What each program took from memory, the cache being of `capacity` stripes, the oldest forgotten. */
export function fetches(down, across, group, capacity) {
  const cache = new Set(); // in order of use
  return Array.from({ length: down * across }, (_, program) => {
    const [row, column] = tileOf(program, down, across, group);
    const [rowsFetched, columnsFetched] = [`row ${row}`, `column ${column}`].map((stripe) => {
      const missed = !cache.delete(stripe);
      cache.add(stripe);
      if (cache.size > capacity) cache.delete(cache.values().next().value);
      return missed;
    });
    return { row, column, rowsFetched, columnsFetched, count: rowsFetched + columnsFetched,
      cached: [...cache] };
  });
}

export const fetchedStripes = (...product) =>
  fetches(...product).reduce((sum, { count }) => sum + count, 0);

/** The softmax before any key. */
export const NOTHING = { maximum: -Infinity, total: 0, mixed: [] };

/** What is subtracted from a block's scores: the maximum, or 0 where no key was seen yet. */
export function base(state, scores) {
  const highest = Math.max(state.maximum, ...scores);
  return highest === -Infinity ? 0 : highest;
}

/** By what the sum and the mixture so far shrink when a block arrives. */
export const factor = (state, scores) => Math.exp(state.maximum - base(state, scores));

/** The state after one more block; `values` has a row of numbers for each score. */
export function add(state, scores, values) {
  const shrink = factor(state, scores), subtracted = base(state, scores);
  const weights = scores.map((score) => Math.exp(score - subtracted));
  const old = state.mixed.length ? state.mixed : values[0].map(() => 0);
  return {
    maximum: Math.max(state.maximum, ...scores),
    total: shrink * state.total + weights.reduce((sum, weight) => sum + weight, 0),
    mixed: old.map((before, i) => shrink * before +
      weights.reduce((sum, weight, key) => sum + weight * values[key][i], 0)),
  };
}

/** The states after each block of `block` keys. */
export function onlineSoftmax(scores, values, block) {
  const states = [];
  for (let start = 0; start < scores.length; start += block) {
    states.push(add(states.at(-1) ?? NOTHING, scores.slice(start, start + block), values.slice(start, start + block)));
  }
  return states;
}

/** The mixture of values, weights adding up to 1; zeros where no key was seen. */
export const output = (state) => state.mixed.map((each) => each / (state.total || 1));
