/* The discrete-event model of `quire.analysis.queueing`, for the load explorer. Functions
 * have the names and the meaning of the Python ones, in camel case, where they are
 * explained; tests/site/test_batching_explorables.py holds the two equal. Gates, policies
 * and clients are left out: requests go to the server at once, first come first served. */

/** The value at `size` of lines between points; the last slope goes on, but never down. */
export function interpolate(points, size) {
  if (size <= points[0][0] || points.length === 1) return points[0][1];
  const found = points.findIndex(([at]) => at >= size);
  const right = found < 0 ? points.length - 1 : found;
  const [x0, y0] = points[right - 1], [x1, y1] = points[right];
  const slope = (y1 - y0) / (x1 - x0);
  return size > x1 ? y1 + Math.max(slope, 0) * (size - x1) : y0 + slope * (size - x0);
}

/** Seconds of a step with these entries, [request, start, number of positions] each:
 * its size's, and those of the cached tokens that it reads beyond the measured step's. */
export function stepSeconds(stepTime, entries) {
  let numTokens = 0, cached = 0;
  for (const [, start, count] of entries) {
    numTokens += count;
    cached += start;
  }
  if (numTokens > entries.length) return interpolate(stepTime.mixed, numTokens) + stepTime.mixed_token * cached;
  const beyond = cached + numTokens * (1 - stepTime.context);
  return interpolate(stepTime.decode, numTokens) + stepTime.decode_token * beyond;
}

/** The decisions of the engine's scheduler where the cache has room. */
export class SchedulerModel {
  constructor(maxNumSeqs, maxNumBatchedTokens) {
    Object.assign(this, { maxNumSeqs, maxNumBatchedTokens, waiting: [], running: [] });
  }

  add(index, [, promptTokens, outputTokens]) {
    this.waiting.push({ index, promptTokens, numTokens: promptTokens, numComputed: 0,
      end: promptTokens + outputTokens });
  }

  /** Let the running catch up, then admit while seats and budget last. */
  step() {
    let budget = this.maxNumBatchedTokens;
    const chosen = [];
    const take = (tracked) => {
      const count = Math.min(tracked.numTokens - tracked.numComputed, budget);
      if (count > 0) chosen.push([tracked, count]);
      budget -= Math.max(count, 0);
    };
    this.running.forEach(take);
    while (this.waiting.length && this.running.length < this.maxNumSeqs && budget > 0) {
      const tracked = this.waiting.shift();
      this.running.push(tracked);
      take(tracked);
    }
    const entries = chosen.map(([tracked, count]) => {
      const entry = [tracked.index, tracked.numComputed, count];
      tracked.numComputed += count;
      if (tracked.numComputed === tracked.numTokens) tracked.numTokens += 1;
      return entry;
    });
    this.running = this.running.filter((tracked) => tracked.numTokens < tracked.end);
    return entries;
  }
}

/** Unit-rate arrivals, [time, prompt, output] each, at `rate` requests a second. */
export const atRate = (arrivals, rate) =>
  arrivals.map(([time, prompt, output]) => [time / rate, prompt, output]);

/** Run until every request has its tokens; arrivals are in order of time. */
export function serve(arrivals, server, stepTime) {
  const steps = [], tokenTimes = arrivals.map(() => []), begun = new Set();
  let clock = 0, numArrived = 0, numInside = 0;
  while (numArrived < arrivals.length || numInside) {
    while (numArrived < arrivals.length && arrivals[numArrived][0] <= clock) {
      server.add(numArrived, arrivals[numArrived]);
      numArrived += 1;
      numInside += 1;
    }
    if (!numInside) { clock = arrivals[numArrived][0]; continue; }
    const entries = server.step();
    for (const [index] of entries) begun.add(index);
    const begin = clock;
    clock += stepSeconds(stepTime, entries);
    steps.push({ begin, end: clock, entries, numWaiting: numArrived - begun.size });
    for (const [index, start, count] of entries) {
      const times = tokenTimes[index], [, prompt, output] = arrivals[index];
      if (start + count === prompt + times.length) {
        times.push(clock);
        numInside -= times.length === output;
      }
    }
  }
  return new Run(arrivals, steps, tokenTimes);
}

/** What happened: steps, and when each request's tokens were known, in seconds. */
export class Run {
  constructor(arrivals, steps, tokenTimes) { Object.assign(this, { arrivals, steps, tokenTimes }); }

  ttft(index) { return this.tokenTimes[index][0] - this.arrivals[index][0]; }

  tpot(index) {
    const times = this.tokenTimes[index];
    return (times.at(-1) - times[0]) / Math.max(times.length - 1, 1);
  }

  ttfts() { return this.arrivals.map((_, index) => this.ttft(index)); }

  interTokenLatencies() {
    return this.tokenTimes.flatMap((times) => times.slice(1).map((time, i) => time - times[i]));
  }

  get seconds() { return this.steps.at(-1).end - Math.min(...this.arrivals.map(([time]) => time)); }

  get outputTokensPerSecond() {
    return this.tokenTimes.reduce((total, times) => total + times.length, 0) / this.seconds;
  }

  attainment(ttft, tpot) { return this.numMet(ttft, tpot) / this.arrivals.length; }

  goodput(ttft, tpot) { return this.numMet(ttft, tpot) / this.seconds; }

  numMet(ttft, tpot) {
    return this.arrivals.filter((_, i) => this.ttft(i) <= ttft && this.tpot(i) <= tpot).length;
  }

  /** The time average of the requests present, counted at every change. */
  meanInSystem() {
    const changes = [...this.arrivals.map(([time]) => [time, 1]),
      ...this.tokenTimes.map((times) => [times.at(-1), -1])].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    let area = 0, present = 0, last = 0;
    for (const [time, change] of changes) {
      area += present * (time - last);
      present += change;
      last = time;
    }
    return area / this.seconds;
  }
}

/** The least value that at least `share` of the values do not exceed. */
export function percentile(values, share) {
  const ordered = Float64Array.from(values).sort();
  return ordered[Math.max(Math.ceil(share * ordered.length), 1) - 1];
}
