/* The names of cached blocks: quire/kv/block_hash.py in the browser, byte for byte.
 *
 * A name is the SHA-256 of the parent's name and the block's token ids as 64-bit integers;
 * the first parent is the hash of the request's extra keys as JSON. The hash function is
 * written out because crypto.subtle is missing on pages without HTTPS. */

const rotate = (word, by) => (word >>> by) | (word << (32 - by));

/** The first 32 bits of the fractional parts of the roots of the first 64 primes. */
const { ROUND, START } = (() => {
  const primes = [];
  for (let n = 2; primes.length < 64; n += 1) {
    if (primes.every((prime) => n % prime)) primes.push(n);
  }
  const bits = (root) => ((root - Math.floor(root)) * 2 ** 32) | 0;
  return { ROUND: primes.map((prime) => bits(Math.cbrt(prime))),
    START: primes.slice(0, 8).map((prime) => bits(Math.sqrt(prime))) };
})();

/** SHA-256 (FIPS 180-4) of bytes, as 32 bytes. */
export function sha256(bytes) {
  const length = Math.ceil((bytes.length + 9) / 64) * 64;
  const padded = new Uint8Array(length);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(length - 4, bytes.length * 8);
  const hash = Int32Array.from(START), w = new Int32Array(64);
  for (let offset = 0; offset < length; offset += 64) {
    for (let t = 0; t < 64; t += 1) {
      if (t < 16) { w[t] = view.getInt32(offset + 4 * t); continue; }
      const a = w[t - 15], b = w[t - 2];
      w[t] = w[t - 16] + w[t - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ (a >>> 3)) +
        (rotate(b, 17) ^ rotate(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let t = 0; t < 64; t += 1) {
      const first = (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
        ROUND[t] + w[t]) | 0;
      const second = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
        ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { hash[i] += value; });
  }
  const digest = new DataView(new ArrayBuffer(32));
  hash.forEach((word, i) => digest.setInt32(4 * i, word));
  return new Uint8Array(digest.buffer);
}

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Python's json.dumps of strings: ", " between them, ASCII only. */
const json = (strings) => `[${strings.map((each) => JSON.stringify(each).replace(/[\u007f-\uffff]/g,
  (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`))
  .join(", ")}]`;

/** The name that the first block's name covers: of the extra keys alone. */
export const root = (extraKeys) => sha256(new TextEncoder().encode(json(extraKeys)));

/** The names of the first `numBlocks` blocks of `tokens`, all full. */
export function chain(tokens, extraKeys, numBlocks, blockSize) {
  const names = [];
  for (let index = 0; index < numBlocks; index += 1) {
    const covered = new Uint8Array(32 + 8 * blockSize), view = new DataView(covered.buffer);
    covered.set(names.at(-1) ?? root(extraKeys));
    for (let i = 0; i < blockSize; i += 1) {
      view.setBigInt64(32 + 8 * i, BigInt(tokens[index * blockSize + i]), true);
    }
    names.push(sha256(covered));
  }
  return names;
}

/** Serve prompts one after the other from an empty cache that never fills up.
 *
 * Each is `{ tokens, extraKeys }`; the answer holds its full blocks' names and how many of
 * its tokens were found, as `match_prefix` counts: at least one token is always computed. */
export function serve(prompts, blockSize) {
  const published = new Set();
  return prompts.map(({ tokens, extraKeys }) => {
    const names = chain(tokens, extraKeys, Math.floor(tokens.length / blockSize), blockSize).map(hex);
    const candidates = names.slice(0, Math.max(Math.floor((tokens.length - 1) / blockSize), 0));
    const missed = candidates.findIndex((name) => !published.has(name));
    const hits = missed < 0 ? candidates.length : missed;
    for (const name of names) published.add(name);
    return { names, hits, hitTokens: hits * blockSize, computed: tokens.length - hits * blockSize };
  });
}
