// The page: what is chosen, and what is shown of it.

import { generate, key, read, Refused } from "/page/api.js";
import { Dial } from "/page/dial.js";
import { Plot, short } from "/page/plot.js";
import { Strip } from "/page/strip.js";
import { Wish } from "/page/wish.js";

const $ = (id) => document.getElementById(id);
const SETTLE = 120; // milliseconds that the dial must rest before its position is drawn

let model, wish, dial, strip;
let plots = [];
let drawing = null, resting = 0;

async function start() {
  model = (await read("/models")).data[0];
  document.title = `stepdial · ${model.name}`;
  if (model.description) $("about").textContent = model.description;
  const parts = { sentence: $("sentence"), words: $("words"), input: $("prompt"), fieldset: $("wish") };
  wish = new Wish(model.conditioning, parts, changed);
  newSeed();
  strip = new Strip($("tiles"), model.positions, (index) => dial.turn(index));
  dial = new Dial($("dial"), model.positions, turned);
  plots = buildPlots();
  dial.turn(model.positions.findIndex((position) => position.steps === model.default_steps), true);
  show(dial.position);
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
  });
  $("new-seed").addEventListener("click", () => {
    newSeed();
    changed();
  });
  $("seed").addEventListener("change", changed);
  $("draw-strip").addEventListener("click", drawStrip);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set($("key").value.trim());
    draw();
  });
  draw();
}

function newSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

// Another wish or seed: the strip is no longer of it.
function changed() {
  strip.age();
  draw();
}

function turned(position) {
  $("deadline").value = ""; // who turns the dial chooses the steps
  show(position);
  clearTimeout(resting);
  resting = setTimeout(draw, SETTLE);
}

function show({ steps, student, kind, measured }) {
  strip.mark(dial.index);
  for (const plot of plots) plot.mark(steps);
  const facts = [kind === "teacher" ? "the teacher" : student];
  if (measured) facts.push(`${short(measured.latency_ms.mean)} ms alone`);
  if (measured?.agreement) facts.push(`${Math.round(measured.agreement.mean * 1000) / 10} % as asked`);
  $("position").textContent = facts.join(" · ");
}

async function draw() {
  clearTimeout(resting);
  drawing?.abort();
  const mine = (drawing = new AbortController());
  $("frame").classList.add("waiting");
  try {
    const asked = request();
    const answer = await generate({ ...asked, ...pace() }, mine.signal);
    if (!mine.signal.aborted) present(answer, asked.seed);
  } catch (error) {
    if (mine.signal.aborted) return;
    complain(error);
    if (error instanceof Refused && error.status === 503 && error.retryAfter) resting = setTimeout(draw, error.retryAfter * 1000);
  } finally {
    if (drawing === mine) $("frame").classList.remove("waiting");
  }
}

// The steps of the dial, or a deadline for which the server chooses them.
function pace() {
  const within = $("deadline").value.trim();
  if (!within) return { steps: dial.position.steps };
  if (!/^[1-9][0-9]{0,7}$/.test(within)) throw new Error("The deadline is a whole number of milliseconds.");
  return { steps: "auto", deadline_ms: Number(within) };
}

function request() {
  const seed = $("seed").value.trim();
  if (!/^[0-9]{1,19}$/.test(seed) || BigInt(seed) >= 2n ** 63n) throw new Error("The seed is a whole number from 0 to 2^63 - 1.");
  return { model: model.name, ...wish.fields, seed };
}

function present(answer, seed) {
  $("error").hidden = $("key-form").hidden = true;
  const image = $("image"), source = `data:image/png;base64,${answer.data[0].b64_json}`;
  const steps = `${answer.steps_used} ${answer.steps_used === 1 ? "step" : "steps"}`;
  image.src = source;
  image.alt = `${wish.text || "An image"}, drawn in ${steps}`;
  image.hidden = false;
  $("caption").textContent = [steps, answer.student, ...promise(answer), `seed ${seed}`].join(" · ");
  if (answer.steps_requested === "auto") {
    dial.turn(model.positions.findIndex((position) => position.steps === answer.steps_used), true);
    show(dial.position);
  }
  $("save").href = source;
  $("save").download = `${model.name}-${answer.steps_used}-${seed}.png`;
  $("save").hidden = false;
  presentTimes(answer.timings);
}

// What the answer says about time and steps, where it was not simply the dial's position.
function promise({ deadline_met, degraded, degrade_reason, timings }) {
  const facts = [];
  if (deadline_met !== null) facts.push(`${deadline_met ? "in time" : "late"}, ${Math.ceil(timings.total_seconds * 1000)} ms`);
  if (degraded) facts.push(`fewer steps because of the ${degrade_reason}`);
  return facts;
}

function presentTimes(timings) {
  const parts = ["queue", "device", "encode"].map((stage) => {
    const milliseconds = timings[`${stage}_seconds`] * 1000;
    document.querySelector(`#bar .${stage}`).style.flexGrow = milliseconds;
    const part = document.createElement("span");
    part.className = stage;
    part.textContent = `${stage} ${milliseconds.toFixed(1)} ms`;
    return part;
  });
  $("times").replaceChildren(...parts);
  $("timing").hidden = false;
}

function complain(error) {
  $("error").textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
  $("error").hidden = false;
  $("key-form").hidden = ![401, 403].includes(error.status);
}

async function drawStrip() {
  try {
    const asked = request();
    $("strip-caption").textContent = [wish.text && `“${wish.text}”`, `seed ${asked.seed}`].filter(Boolean).join(", ");
    await strip.draw(asked);
    $("error").hidden = true;
  } catch (error) {
    complain(error);
  }
}

function buildPlots() {
  const measured = model.positions.filter((position) => position.measured);
  if (!measured.length) {
    $("measured").textContent = "This family has not been measured yet.";
    return [];
  }
  const points = (name) => measured.map(({ steps, kind, measured: found }) => ({ steps, kind, ...found[name] }));
  const onPick = (index) => dial.turn(model.positions.indexOf(measured[index]));
  const built = [
    new Plot({ title: "Fréchet distance", unit: "", points: points("frechet"), floor: measured[0].measured.floor.mean, onPick }),
    new Plot({ title: "Latency of one image", unit: " ms", points: points("latency_ms"), onPick }),
  ];
  $("plots").append(...built.map((plot) => plot.element));
  tellMeasurement();
  return built;
}

async function tellMeasurement() {
  const { reference, judge, positions } = await read("/frontier");
  const { samples, timed } = positions[0];
  const judged = judge ? `, judged by ${judge}` : "";
  $("measured").textContent = `Distance of ${samples.toLocaleString("en")} images to ${reference}${judged}; lower is better. Timed on ${timed.device}.`;
}

start().catch(complain);
