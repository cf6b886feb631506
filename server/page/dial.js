// The dial: a knob that snaps to the served positions. Mouse, touch and keyboard turn it; it is a slider to screen readers.

const SVG = "http://www.w3.org/2000/svg";
const CENTRE = 170, TRACK = 112, LABELS = 147, KNOB = 82;
const FIRST = -135, LAST = 135; // degrees from the top, clockwise
const OVER = 5, GAP = 1.2; // the track goes a little over its ends, and is parted between students and teacher

export function svg(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

export class Dial {
  // element: the slider's element. positions: [{steps, kind, student}], rising. onTurn(position): called when it snaps.
  constructor(element, positions, onTurn) {
    this.element = element;
    this.positions = positions;
    this.onTurn = onTurn;
    this.index = -1;
    this.build();
    element.setAttribute("aria-valuemin", positions[0].steps);
    element.setAttribute("aria-valuemax", positions.at(-1).steps);
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("pointerdown", (event) => this.grab(event));
    element.addEventListener("pointermove", (event) => this.drag(event));
  }

  get position() {
    return this.positions[this.index];
  }

  angle(index) {
    return this.positions.length < 2 ? 0 : FIRST + ((LAST - FIRST) * index) / (this.positions.length - 1);
  }

  build() {
    const drawing = svg("svg", { viewBox: "0 0 340 310", "aria-hidden": "true" });
    const teacher = this.positions.findIndex((position) => position.kind === "teacher");
    const border = teacher < 0 ? LAST + OVER : teacher === 0 ? FIRST - OVER : (this.angle(teacher - 1) + this.angle(teacher)) / 2;
    this.tracks = [["student", FIRST - OVER, border - GAP], ["teacher", border + GAP, LAST + OVER]].filter(([, from, to]) => to > from);
    this.filled = this.tracks.map(([kind]) => svg("path", { class: `track ${kind} filled` }));
    for (const [kind, from, to] of this.tracks) drawing.append(svg("path", { class: `track ${kind}`, d: arc(from, to) }));
    drawing.append(...this.filled);
    this.stops = this.positions.map((position, index) => this.stop(position, index));
    this.pointer = svg("g", { class: "pointer" });
    this.pointer.append(svg("circle", { class: "bead", cx: CENTRE, cy: CENTRE - TRACK, r: 11 }));
    this.pointer.append(svg("path", { d: `M${CENTRE} ${CENTRE - KNOB + 5}V${CENTRE - KNOB + 17}` }));
    this.number = svg("text", { class: "number", x: CENTRE, y: CENTRE + 14 });
    this.unit = svg("text", { class: "unit", x: CENTRE, y: CENTRE + 40 });
    drawing.append(svg("circle", { class: "knob", cx: CENTRE, cy: CENTRE, r: KNOB }), ...this.stops, this.pointer, this.number, this.unit);
    this.element.replaceChildren(drawing);
  }

  stop(position, index) {
    const group = svg("g", { class: `stop ${position.kind}` });
    const [x, y] = place(this.angle(index), TRACK), [labelX, labelY] = place(this.angle(index), LABELS);
    group.append(svg("circle", { cx: x, cy: y, r: 3.5 }), svg("text", { x: labelX, y: labelY + 5 }, String(position.steps)));
    return group;
  }

  // Turn to a position by its number in the list. quiet: tell nobody.
  turn(index, quiet = false) {
    index = Math.max(0, Math.min(this.positions.length - 1, index));
    if (index === this.index) return;
    this.stops[this.index]?.classList.remove("current");
    this.index = index;
    this.stops[index].classList.add("current");
    const { steps, kind, student } = this.position;
    this.element.dataset.kind = kind;
    this.pointer.setAttribute("transform", `rotate(${this.angle(index)} ${CENTRE} ${CENTRE})`);
    this.filled.forEach((path, at) => {
      const [, from, to] = this.tracks[at];
      path.setAttribute("d", arc(from, Math.max(from, Math.min(to, this.angle(index)))));
    });
    this.number.textContent = steps;
    this.unit.textContent = steps === 1 ? "step" : "steps";
    this.element.setAttribute("aria-valuenow", steps);
    this.element.setAttribute("aria-valuetext", `${steps} ${this.unit.textContent}, ${student}`);
    if (!quiet) this.onTurn(this.position);
  }

  key(event) {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 3, PageDown: -3 };
    const ends = { Home: 0, End: this.positions.length - 1 };
    if (event.key in moves) this.turn(this.index + moves[event.key]);
    else if (event.key in ends) this.turn(ends[event.key]);
    else return;
    event.preventDefault();
  }

  grab(event) {
    if (event.button !== 0) return;
    this.element.setPointerCapture(event.pointerId);
    this.follow(event);
    this.element.focus({ preventScroll: true });
    event.preventDefault();
  }

  drag(event) {
    if (this.element.hasPointerCapture(event.pointerId)) this.follow(event);
  }

  follow(event) {
    const box = this.element.firstChild.getBoundingClientRect();
    const x = event.clientX - box.left - (box.width * CENTRE) / 340, y = event.clientY - box.top - (box.height * CENTRE) / 310;
    if (Math.hypot(x, y) < box.width * 0.08) return; // too near the middle to have a direction
    const degrees = (Math.atan2(x, -y) * 180) / Math.PI;
    this.turn(Math.round(((degrees - FIRST) / (LAST - FIRST)) * (this.positions.length - 1)));
  }
}

function place(degrees, radius) {
  const radians = (degrees * Math.PI) / 180;
  return [CENTRE + radius * Math.sin(radians), CENTRE - radius * Math.cos(radians)];
}

function arc(from, to) {
  const [x0, y0] = place(from, TRACK), [x1, y1] = place(to, TRACK);
  return `M${x0} ${y0}A${TRACK} ${TRACK} 0 ${to - from > 180 ? 1 : 0} 1 ${x1} ${y1}`;
}
