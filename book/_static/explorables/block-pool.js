/* The block pool of a recorded run, replayed: quire/kv/block_pool.py's state after each step.
 *
 * The free blocks are a list from the least to the most recently freed. A block given out
 * leaves at the front and forgets what it cached; one found again leaves from where it is;
 * one that nobody holds any more goes to the back and keeps its content until then. */

export class BlockPool {
  constructor(numBlocks) {
    this.references = Array(numBlocks + 1).fill(0); // block 0 is never given out
    this.free = Array.from({ length: numBlocks }, (_, i) => i + 1);
    this.cached = new Set();
  }

  /** Carry out an operation of the engine's; return the blocks that lost cached content. */
  apply([operation, blocks]) {
    const forgotten = [];
    for (const block of blocks) {
      if (operation === "publish") { this.cached.add(block); continue; }
      if (operation === "release") {
        this.references[block] -= 1;
        if (this.references[block] === 0) this.free.push(block);
        continue;
      }
      if (this.references[block] === 0) this.free.splice(this.free.indexOf(block), 1);
      this.references[block] += 1;
      if (operation === "allocate" && this.cached.delete(block)) forgotten.push(block);
    }
    return forgotten;
  }
}

/** The states before step 1 and after the decisions of each step, with what each forgot. */
export function replay({ num_blocks: numBlocks, block_size: size, steps }) {
  const pool = new BlockPool(numBlocks);
  const written = Array(numBlocks + 1).fill(0); // positions of each block with content
  const state = (forgotten) => ({ forgotten, free: [...pool.free],
    cached: [...pool.cached].sort((a, b) => a - b), written: [...written] });
  const states = [state([])];
  for (const { operations, tables, tokens } of steps) {
    const forgotten = [];
    for (const operation of operations) {
      forgotten.push(...pool.apply(operation));
      if (operation[0] === "allocate") for (const block of operation[1]) written[block] = 0;
    }
    for (const [id, blocks] of Object.entries(tables)) {
      blocks.forEach((block, i) => {
        written[block] = Math.max(written[block], Math.min(size, tokens[id] - i * size));
      });
    }
    states.push(state(forgotten));
  }
  return states;
}
