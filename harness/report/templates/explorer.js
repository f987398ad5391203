// The explorer: sliders, and what each method's step takes there. `stepS` and `Network` are of step_model.js.
"use strict";
const told = JSON.parse(document.getElementById("explorer-data").textContent);
const find = (id) => document.getElementById(`explorer-${id}`);
const SLOWEST_BPS = 1e6, FASTEST_BPS = 1e11, POINTS = 51;

// What a slider's place means, and how that is said.
const SLIDERS = {
  rate: { at: (place) => Math.round(10 ** (place / 20)), say: rate },
  rtt: { at: (place) => (place < -100 ? 0 : Number((10 ** (place / 20)).toPrecision(3))), say: (s) => (s ? time(s) : "none") },
  workers: { at: (place) => told.workers[place], say: String },
  ranks: { at: Number, say: String },
  passes: { at: Number, say: (passes) => `${passes * chosen().batch} samples a rank` },
  speed: { at: (place) => 2 ** (place / 4), say: (speed) => `${round(speed)} × the profile's` },
};

const chosen = () => told.profiles[find("profile").value];
let current = 0;

function update() {
  const point = {}, number = ++current;
  document.body.dataset.explorer = "computing";
  for (const [name, { at, say }] of Object.entries(SLIDERS)) {
    point[name] = at(Number(find(name).value));
    const shown = find(`${name}-shown`);
    shown.dataset.value = point[name];
    shown.textContent = say(point[name]);
    find(name).setAttribute("aria-valuetext", shown.textContent);
  }
  const steps = chosen().methods.map((method) => ({ method, stepS: takes(method, point, point.rate) }));
  const base = steps.find(({ method }) => method.label === chosen().base);
  steps.sort((a, b) => a.stepS - b.stepS);
  tell(point, steps, base);
  const rows = table(steps, base);
  scan(point, steps.map((each) => each.method), rows, number);
}

// Seconds of a step; passes before the last send nothing.
function takes(method, point, rateBps, network) {
  const slower = point.ranks / point.speed, earlierS = (point.passes - 1) * chosen().passes_s * slower;
  const schedule = method.schedules[method.schedule_of_workers[told.workers.indexOf(point.workers)]];
  return earlierS + stepS(schedule, network ?? onLinks(point, rateBps), slower) + method.beyond_s;
}

function onLinks(point, rateBps) {
  return new Network(told.constants, point.workers, rateBps, point.rtt);
}

function tell(point, steps, base) {
  const { method, stepS } = steps[0], [where, base16] = [`At ${rate(point.rate)}`, base.method.label];
  find("winner").textContent = method === base.method
    ? `${where}, no method's step is predicted to be shorter than that of ${base16}: ${time(stepS)}.`
    : `${where}, ${method.label} has the shortest step: ${time(stepS)}, ${round(base.stepS / stepS)} times shorter than with ${base16}.`;
  find("winner").dataset.winner = method.label;
  find("about").textContent = `${chosen().model}, ${chosen().origin}. Gradients travel in buckets of ${told.bucket}.`
    + (chosen().base_is_free ? ` What ${base16} costs beside the wire is not known; it is taken to cost nothing.` : "");
}

function table(steps, base) {
  const longest = Math.max(...steps.map((each) => each.stepS)), rows = new Map();
  const made = steps.map(({ method, stepS }) => {
    const row = document.createElement("tr"), head = document.createElement("th"), bar = document.createElement("td");
    head.scope = "row";
    head.append(swatch(method.color), method.label);
    bar.className = "bar";
    bar.append(Object.assign(document.createElement("i"), { title: time(stepS) }));
    bar.firstChild.style.width = `${100 * stepS / longest}%`;
    bar.firstChild.style.background = method.color;
    const pays = cell(method === base.method ? "–" : "…");
    row.append(head, cell(time(stepS)), bar, cell(`${round(base.stepS / stepS)}x`), pays);
    Object.assign(row.dataset, { label: method.label, seconds: stepS });
    rows.set(method, pays);
    return row;
  });
  find("steps").replaceChildren(...made);
  find("base").textContent = base.method.label;
  return rows;
}

// All bandwidths, a method at a time, so that the page stays awake; then the break-evens and the figure.
function scan(point, methods, rows, number) {
  const rates = [...Array(POINTS).keys()].map((place) =>
    Math.round(SLOWEST_BPS * (FASTEST_BPS / SLOWEST_BPS) ** (place / (POINTS - 1))));
  const networks = rates.map((rateBps) => onLinks(point, rateBps));
  const line = (method) => networks.map((network, place) => takes(method, point, rates[place], network));
  const base = methods.find(({ label }) => label === chosen().base), baseLine = line(base), lines = [];
  const next = () => {
    if (number !== current) return;
    const method = methods[lines.length];
    if (method) {
      const own = method === base ? baseLine : line(method);
      lines.push([method, own]);
      if (method !== base) pays(rows.get(method), method, base, rates, own.map((s, place) => s < baseLine[place]), point);
      setTimeout(next);
      return;
    }
    draw(point, rates, lines);
    document.body.dataset.explorer = "settled";
  };
  setTimeout(next);
}

// Says where a method is faster than the 16-bit all-reduce: of several ranges the one that reaches furthest up.
function pays(shown, method, base, rates, isFaster, point) {
  const last = isFaster.lastIndexOf(true), before = isFaster.lastIndexOf(false, last);
  if (last < 0) return (shown.textContent = "nowhere");
  const turn = (slow, fast) => breakEven(slow, fast, (rateBps) => takes(method, point, rateBps) < takes(base, point, rateBps));
  const low = before < 0 ? null : turn(rates[before], rates[before + 1]);
  const high = last === rates.length - 1 ? null : turn(rates[last], rates[last + 1]);
  if (high) shown.dataset.breakEven = high;
  shown.textContent = low && high ? `${rate(low)} to ${rate(high)}` : high ? `below ${rate(high)}` : low ? `above ${rate(low)}` : "anywhere";
  return shown;
}

// The bandwidth between two at which it turns who is faster, by halving their ratio.
function breakEven(slowBps, fastBps, isFaster) {
  const atSlow = isFaster(slowBps);
  while (fastBps / slowBps > 1.0005) {
    const between = Math.round(Math.sqrt(slowBps * fastBps));
    if (isFaster(between) === atSlow) slowBps = between; else fastBps = between;
  }
  return Math.round(Math.sqrt(slowBps * fastBps));
}

const WIDTH = 760, HEIGHT = 380, LEFT = 64, BOTTOM = 34, TOP = 8;

function draw(point, rates, lines) {
  const all = lines.flatMap(([, line]) => line), decades = [Math.log10(Math.min(...all)), Math.log10(Math.max(...all))];
  const x = (rateBps) => LEFT + (WIDTH - LEFT - 8) * Math.log10(rateBps / SLOWEST_BPS) / Math.log10(FASTEST_BPS / SLOWEST_BPS);
  const y = (s) => TOP + (HEIGHT - TOP - BOTTOM) * (decades[1] - Math.log10(s)) / (decades[1] - decades[0] || 1);
  const ticks = [];
  for (let decade = Math.ceil(decades[0]); decade <= decades[1]; decade++) {
    const s = 10 ** decade;
    ticks.push(svg("line", { x1: LEFT, x2: WIDTH - 8, y1: y(s), y2: y(s), class: "grid" }));
    ticks.push(svg("text", { x: LEFT - 6, y: y(s) + 4, "text-anchor": "end" }, time(s)));
  }
  for (let rateBps = SLOWEST_BPS; rateBps <= FASTEST_BPS; rateBps *= 10) {
    ticks.push(svg("line", { x1: x(rateBps), x2: x(rateBps), y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" }));
    ticks.push(svg("text", { x: x(rateBps), y: HEIGHT - 12, "text-anchor": rateBps === FASTEST_BPS ? "end" : "middle" }, rate(rateBps)));
  }
  const drawn = lines.map(([method, line], place) => {
    const points = line.map((s, number) => `${x(rates[number]).toFixed(1)},${y(s).toFixed(1)}`).join(" ");
    const strong = place === 0 || method.label === chosen().base;
    const own = svg("polyline", { points, stroke: method.color, "stroke-width": strong ? 3 : 1.2 });
    own.append(svg("title", {}, method.label));
    return own;
  });
  const here = svg("line", { x1: x(point.rate), x2: x(point.rate), y1: TOP, y2: HEIGHT - BOTTOM, class: "here" });
  find("figure").replaceChildren(...ticks, ...drawn, here);
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function cell(text) {
  return Object.assign(document.createElement("td"), { textContent: text });
}

function swatch(color) {
  const made = Object.assign(document.createElement("b"), { className: "swatch" });
  made.style.background = color;
  return made;
}

function round(value) {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function time(s) {
  return s < 1e-3 ? `${round(1e6 * s)} µs` : s < 1 ? `${round(1e3 * s)} ms` : `${round(s)} s`;
}

function rate(bps) {
  const [size, unit] = bps < 1e9 ? [1e6, "Mbit/s"] : [1e9, "Gbit/s"];
  return `${round(bps / size)} ${unit}`;
}

told.profiles.forEach((profile, place) => find("profile").append(new Option(`${profile.model} · ${profile.name}`, place)));
for (const name of ["profile", ...Object.keys(SLIDERS)]) find(name).addEventListener("input", update);
update();
