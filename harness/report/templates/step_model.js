// What a step takes on a star of alike links: the arithmetic of harness/plan/predict.py, harness/plan/collectives.py,
// harness/network/pipeline.py and harness/network/flows.py, by their names. Constants and schedules come from Python.
"use strict";

// Seconds of a step; `slower` is how many times longer everything on the device takes than in the profile.
function stepS(schedule, network, slower) {
  const jobs = schedule.jobs.flat().map(([readyS, calls]) => ({ readyS: slower * readyS, calls: calls.flatMap(oneByOne) }));
  const computedS = slower * schedule.computed_s;
  if (schedule.hidden_s !== null) {
    const waited = waitedS(schedule, network, jobs, slower);
    return computedS + waited / schedule.every + slower * schedule.optimizer_s;
  }
  const endedS = onTheNetworkS(network, jobs, schedule.at_once, slower * schedule.silent_s);
  let nowS = computedS, next = 0;
  schedule.jobs.forEach((own, bucket) => {
    const arrivedS = Math.max(...endedS.slice(next, next + own.length));
    next += own.length;
    nowS = Math.max(nowS, arrivedS) + slower * schedule.decode_s[bucket];
  });
  return nowS + slower * schedule.optimizer_s;
}

// What ranks wait in all for jobs that they began and went on without; all that follows comes so much later.
function waitedS(schedule, network, jobs, slower) {
  const hiddenS = slower * schedule.hidden_s, sum = (numbers) => numbers.reduce((all, each) => all + each, 0);
  let waited = jobs.map(() => 0);
  for (const _ of jobs) {
    const begun = jobs.map((job, place) => {
      const before = (_, other) => other < place && jobs[other].readyS <= job.readyS - hiddenS + network.is.rounding_s;
      return { ...job, readyS: job.readyS + sum(waited.filter(before)) };
    });
    const endedS = onTheNetworkS(network, begun, schedule.at_once, slower * schedule.silent_s);
    const found = jobs.map((job, place) =>
      Math.max(0, endedS[place] - job.readyS - hiddenS - sum(waited.slice(0, place))));
    if (found.every((each, place) => each === waited[place])) break;
    waited = found;
  }
  return sum(waited);
}

// So many collectives that are alike, one by one.
function oneByOne([kind, size, count, times]) {
  return Array(times).fill([kind, size, count]);
}

// When each job has ended, if `atOnce` of them may be under way together, and begin in order.
function onTheNetworkS(network, jobs, atOnce, silentS) {
  const endedS = jobs.map(() => 0), waiting = jobs.map((job, number) => ({ ...job, number }));
  let active = [], nowS = 0, lastS = jobs[0].readyS - silentS;
  while (waiting.length || active.length) {
    if (!active.length) nowS = Math.max(nowS, waiting[0].readyS);
    while (waiting.length && active.length < atOnce && waiting[0].readyS <= nowS) {
      const { number, calls } = waiting.shift();
      active.push(begun({ number, calls: [...calls], restedS: active.length ? 0 : nowS - lastS }, network));
    }
    const speedOf = speeds(active.map((each) => each.busyShare));
    let untilS = Math.min(...active.map((each, place) => each.leftS / speedOf[place]));
    if (waiting.length && active.length < atOnce) untilS = Math.min(untilS, waiting[0].readyS - nowS);
    nowS += untilS;
    active = active.filter((each, place) => {
      if (!hasEnded(each, untilS * speedOf[place], network)) return true;
      [endedS[each.number], lastS] = [nowS, nowS - each.restedS];
      return false;
    });
  }
  return endedS;
}

function begun(job, network) {
  const { tookS, busyS, restedS } = network.timing(job.calls.shift(), job.restedS);
  return Object.assign(job, { leftS: tookS, restedS, busyShare: tookS ? busyS / tookS : 0 });
}

function hasEnded(job, workedS, network) {
  job.leftS -= workedS;
  while (job.leftS <= network.is.rounding_s) {
    if (!job.calls.length) return true;
    begun(job, network);
  }
  return false;
}

// How fast jobs go on that share the busiest queue fairly, of how fast each would alone.
function speeds(busyShares) {
  const found = busyShares.map(() => 1);
  let left = 1;
  const hungriestLast = busyShares.map((share, number) => [share, number]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  hungriestLast.forEach(([share, number], place) => {
    const given = Math.min(share, left / (busyShares.length - place));
    left -= given;
    if (share > 0) found[number] = given / share;
  });
  return found;
}

class Network {
  // `is`: the constants of the model. A round trip crosses four links; a link without delay is a token bucket.
  constructor(is, workers, rateBps, rttS) {
    const delayS = rttS / is.links_to_cross, netem = delayS > 0;
    const burstBytes = Math.max(is.least_burst_bytes, Math.ceil(rateBps / 8 * is.burst_s));
    const packets = Math.trunc(rateBps / 8 * is.segment_s / is.mtu_bytes);
    const segments = netem ? Math.min(Math.max(1, packets), is.offloaded_segments) : is.offloaded_segments;
    Object.assign(this, { is, workers, bytesPerS: rateBps / 8, known: new Map() });
    this.savedS = netem ? 0 : 8 * burstBytes / rateBps;
    this.thereS = 2 * delayS;
    this.acks = is.frame_header_bytes / (Math.max(2, segments) * is.mss_bytes);
  }

  // What a collective takes that has the network to itself: [kind, payload bytes, servers or distance].
  timing(call, idleS) {
    const leastAlikeS = idleS < this.is.shortest_rto_s ? Math.min(idleS, this.savedS) : idleS;
    const key = `${call} ${leastAlikeS}`;
    if (!this.known.has(key)) this.known.set(key, this.timed(...call, leastAlikeS));
    return this.known.get(key);
  }

  timed(kind, size, count, idleS) {
    const p = this.workers;
    switch (kind) {
      case "AllReduce": return this.allReduce(size, idleS, 2);
      case "ReduceScatter": return this.allReduce(size, idleS, 1);
      case "AllGather": return this.ring(size / 2, 2 * (p - 1), 1, idleS);
      case "Broadcast": return this.broadcast(size, idleS);
      case "AllToAll": return this.exchange(size / p, idleS, 0, false);
      case "Push": return this.exchange(size / count, idleS, count, true);
      case "Pull": return this.exchange(size / count, idleS, count, false);
      case "Shift": return this.pairs(size, idleS);
    }
    throw new Error(`no collective: ${kind}`);
  }

  allReduce(payload, idleS, rounds) {
    const { is, workers: p } = this;
    if (payload <= is.entry_bytes * p) return this.walk(payload, rounds);
    const ofEach = Math.ceil(Math.max(2 * p, Math.ceil(payload / is.segment_bytes)) / p);
    return this.ring(payload / (ofEach * p), ofEach * (p - 1), rounds, idleS);
  }

  walk(payload, rounds) {
    const onceS = this.workers * (this.is.message_s + this.thereS + this.onTheWire(payload) / this.bytesPerS);
    return { tookS: rounds * onceS * (this.workers - 1) / this.workers, busyS: 0, restedS: Infinity };
  }

  ring(segment, segments, rounds, idleS) {
    const size = this.onTheWire(segment);
    const [passedS, restedS] = this.pipeline(size, segments, rounds, idleS);
    const sends = rounds * segments * size;
    const busyS = Math.max(0, sends / this.bytesPerS - Math.min(this.savedS, idleS));
    const tookS = passedS + this.restartS(2 * size, sends, idleS);
    return { tookS, busyS: Math.min(busyS, tookS), restedS };
  }

  // When workers that all pass on segments have received the last one, and for how long the lanes have been silent.
  pipeline(size, segments, rounds, idleS) {
    const takesS = size / this.bytesPerS;
    let late = [1, 2].map(() => -Math.min(this.savedS, idleS)), nowS = 0;
    for (let round = 0; round < rounds; round++) [nowS, late] = this.round(takesS, late, nowS, segments);
    return [nowS, Math.min(...late.map((each) => nowS - each))];
  }

  round(takesS, late, nowS, segments) {
    let beforeLastS = nowS, lastS = nowS, seen = null;
    for (let left = segments; left > 0;) {
      const startS = beforeLastS + this.thereS;
      late = late.map((each) => Math.max(each, startS - this.savedS) + takesS);
      const arrivedS = Math.max(startS, ...late) + this.thereS + this.is.message_s;
      [beforeLastS, lastS, left] = [lastS, Math.max(arrivedS, lastS), left - 1];
      if (left % 2) continue;
      // Two segments on, all may be as it was, only later; then it goes on like this.
      const state = [lastS, beforeLastS, ...late], pairs = Math.floor(left / 2);
      const moreS = seen && this.allLaterS(seen, state);
      if (moreS !== null) return [lastS + pairs * moreS, late.map((each) => each + pairs * moreS)];
      seen = state;
    }
    return [lastS, late];
  }

  allLaterS(before, now) {
    const moreS = now.map((later, place) => later - before[place]), most = Math.max(...moreS);
    return most - Math.min(...moreS) <= this.is.same * most ? moreS[0] : null;
  }

  // Every worker sends every other one so many bytes; with servers, only to these, or only they to all.
  exchange(size, idleS, servers, toServers) {
    const kinds = [[this.workers - servers, false], [servers, true]].filter(([members]) => members);
    const places = kinds.map((_, place) => place);
    const classes = places.flatMap((one) => places.map((other) => [one, other]))
      .filter(([one, other]) => one !== other || kinds[one][0] > 1);
    const use = new Map(), back = this.acks / this.is.header;
    const pass = (queue, number, passing) => {
      if (!use.has(queue)) use.set(queue, classes.map(() => 0));
      use.get(queue)[number] += passing;
    };
    const sizes = classes.map(([one, other], number) => {
      const same = Number(one === other), out = kinds[other][0] - same, into = kinds[one][0] - same;
      pass(`up ${one}`, number, out);
      pass(`down ${other}`, number, into);
      pass(`up ${other}`, number, back * into);
      pass(`down ${one}`, number, back * out);
      const silent = servers && !(toServers ? kinds[other] : kinds[one])[1];
      return (silent ? 0 : this.is.header * size) + this.is.message_bytes;
    });
    return this.shared([...use.values()], sizes, idleS);
  }

  // So many bytes from each worker to a receiver of its own.
  pairs(size, idleS) {
    const bothWays = 1 + this.acks / this.is.header;
    return this.shared([[bothWays], [bothWays]], [this.is.header * size + this.is.message_bytes], idleS);
  }

  broadcast(size, idleS) {
    const sum = { tookS: 0, busyS: 0 };
    for (let have = 1; have < this.workers; have *= 2) {
      const { tookS, busyS, restedS } = this.pairs(size, have > 1 ? 0 : idleS);
      Object.assign(sum, { tookS: sum.tookS + tookS, busyS: sum.busyS + busyS, restedS });
    }
    return sum;
  }

  // Flows that begin together, each as soon as its receiver's readiness is known.
  shared(use, sizes, idleS) {
    const rates = use.map(() => this.bytesPerS);
    const saved = use.map(() => this.bytesPerS * Math.min(this.savedS, idleS));
    const arrivedS = this.arrivalsS(use, rates, saved, sizes);
    const lateS = sizes.map((size) => 2 * this.thereS + this.restartS(size, size, idleS));
    const tookS = this.is.message_s + Math.max(...arrivedS.map((each, place) => each + lateS[place]));
    const busiest = use.map((row, queue) => (dot(row, sizes) - saved[queue]) / rates[queue]);
    const busyS = Math.max(0, ...busiest);
    return { tookS, busyS, restedS: tookS - busyS };
  }

  arrivalsS(use, rates, saved, sizes) {
    const full = this.is.full, atOnce = this.fair(use, saved, sizes), arrivedS = sizes.map(() => 0);
    const rest = (left, number) => (left <= full * sizes[number] ? 0 : left);
    let left = sizes.map((size, number) => rest(size - atOnce[number], number)), nowS = 0;
    while (left.some((each) => each > 0)) {
      const speed = this.fair(use, rates, left.map((each) => (each > 0 ? Infinity : 0)));
      const takesS = Math.min(...left.map((each, number) => (each > 0 ? each / speed[number] : Infinity)));
      nowS += takesS;
      left = left.map((each, number) => {
        if (each === 0) return 0;
        const still = rest(each - takesS * speed[number], number);
        if (still === 0) arrivedS[number] = nowS;
        return still;
      });
    }
    return arrivedS;
  }

  // What each flow of a class gets: all grow alike until a queue is full, whose flows then stay as they are.
  fair(use, capacity, wanted) {
    const full = 1 + this.is.full, got = wanted.map(() => 0);
    let growing = wanted.map((each) => each > 0), left = [...capacity];
    while (growing.some(Boolean)) {
      const load = use.map((row) => dot(row, growing.map(Number)));
      const room = left.map((each, queue) => (load[queue] > 0 ? each / load[queue] : Infinity));
      const lacking = wanted.map((each, flow) => (growing[flow] ? each - got[flow] : Infinity));
      const step = Math.min(...room, ...lacking);
      growing.forEach((grows, flow) => { if (grows) got[flow] += step; });
      left = left.map((each, queue) => Math.max(each - step * load[queue], 0));
      const isFull = room.map((each, queue) => load[queue] > 0 && each <= step * full);
      growing = growing.map((grows, flow) =>
        grows && wanted[flow] > got[flow] * full && !use.some((row, queue) => isFull[queue] && row[flow] > 0));
    }
    return got;
  }

  // What slow start costs after a long silence, where a round trip carries more than the window that is left.
  restartS(needed, sent, idleS) {
    const rttS = 2 * this.thereS, rate = this.bytesPerS;
    if (rttS === 0 || idleS === Infinity) return 0;
    const inFlight = Math.min(needed, rate * rttS);
    const halvings = Math.min(60, Math.trunc(idleS / (this.is.shortest_rto_s + rttS)));
    let window = Math.max(this.is.initial_window_bytes, inFlight / 2 ** halvings), lostS = 0;
    for (; window < Math.min(inFlight, sent); window *= 2) {
      lostS += rttS - window / rate;
      sent -= window;
    }
    return lostS;
  }

  onTheWire(payload) {
    return (this.is.header + this.acks) * payload + this.is.message_bytes;
  }
}

function dot(one, other) {
  return one.reduce((sum, each, place) => sum + each * other[place], 0);
}
