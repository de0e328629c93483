/* Which rank holds which experts: the twin of `quire.parallel.expert_placement`.
 *
 * A placement is an array of ranks, each an array of slots; a slot holds an expert's number, or
 * null while it is empty. */

const total = (numbers) => numbers.reduce((sum, each) => sum + each, 0);

/** How many copies each expert has, `[experts]`. */
export function copiesOf(slots, experts) {
  const copies = Array(experts).fill(0);
  for (const expert of slots.flat()) if (expert !== null) copies[expert] += 1;
  return copies;
}

/** The load of each rank, if the copies of an expert share its load evenly. */
export function rankLoads(slots, loads) {
  const copies = copiesOf(slots, loads.length);
  return slots.map((held) => total(held.filter((e) => e !== null).map((e) => loads[e] / copies[e])));
}

/** The greatest load of a rank over the mean of all, 1 where there is none. */
export function imbalance(slots, loads) {
  const each = rankLoads(slots, loads), mean = total(each) / each.length;
  return mean > 0 ? Math.max(...each) / mean : 1;
}

/** Rank r holds as many experts as the others, from its first number on. */
export function contiguous(experts, ranks) {
  const each = experts / ranks;
  return Array.from({ length: ranks }, (_, rank) => Array.from({ length: each }, (_, i) => rank * each + i));
}

/** Equally many experts a rank, longest processing time first. */
export const packed = (loads, ranks) => replicated(loads, ranks, loads.length);

/** Copies for the experts with the greatest load a copy; then they are packed. */
export function replicated(loads, ranks, numSlots) {
  const numbers = loads.map((_, expert) => expert), copies = loads.map(() => 1);
  for (let slot = loads.length; slot < numSlots; slot += 1) {
    const key = (e) => [-loads[e] / copies[e], copies[e], e];
    copies[least(numbers.filter((e) => copies[e] < ranks), key)] += 1;
  }
  const order = sorted(numbers, (e) => [-loads[e] / copies[e], e]);
  const held = Array.from({ length: ranks }, () => []), sums = Array(ranks).fill(0);
  const free = Array(ranks).fill(numSlots / ranks);
  order.forEach((expert, place) => {
    const later = order.slice(place + 1).map((e) => copies[e]);
    for (const rank of chooseRanks(copies[expert], sums, free, later)) {
      held[rank].push(expert);
      free[rank] -= 1;
      sums[rank] += loads[expert] / copies[expert];
    }
  });
  return held.map((experts) => experts.sort((a, b) => a - b));
}

/** Ranks for the copies of one expert: the least loaded, unless later ones would find no room. */
function chooseRanks(count, sums, free, later) {
  const room = free.map((_, rank) => rank).filter((rank) => free[rank] > 0);
  const byLoad = sorted(room, (rank) => [sums[rank], rank]);
  const byRoom = sorted(room, (rank) => [-free[rank], sums[rank], rank]);
  for (let some = 0; some <= count; some += 1) {
    const first = byRoom.slice(0, some);
    const chosen = [...first, ...byLoad.filter((rank) => !first.includes(rank)).slice(0, count - some)];
    if (canHold(free.map((slots, rank) => slots - chosen.includes(rank)), later)) return chosen;
  }
  throw new Error(`no ${count} ranks for an expert with ${free} free slots`);
}

/** Whether free slots can hold experts of so many copies without two on a rank (Gale and Ryser). */
function canHold(free, copies) {
  let room = 0, filled = 0;
  for (const [k, slots] of [...free].sort((a, b) => b - a).entries()) {
    room += slots;
    filled += copies.filter((number) => number > k).length;
    if (room > filled) return false;
  }
  return room === filled;
}

function compareKeys(a, b) {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at < 0 ? 0 : a[at] - b[at];
}

const sorted = (items, key) => [...items].sort((a, b) => compareKeys(key(a), key(b)));
const least = (items, key) => sorted(items, key)[0];
