// A small plot: one measured quantity at every position of the dial, on a logarithmic scale, the current one marked.

import { svg } from "/page/dial.js";

const WIDTH = innerWidth < 600 ? 330 : 460; // drawn at about its own size, so that its words can be read on a phone
const HEIGHT = 210, LEFT = 46, RIGHT = 14, TOP = 16, BOTTOM = 30;

export class Plot {
  // points: [{steps, kind, mean, spread}] by rising steps. floor: the best that is possible, or null.
  constructor({ title, unit, points, floor = null, onPick }) {
    this.title = title;
    this.unit = unit;
    this.points = points;
    const values = points.flatMap(({ mean, spread }) => [mean + spread, Math.max(mean - spread, mean / 2)]);
    const all = floor ? [...values, floor] : values;
    this.low = Math.log10(Math.min(...all)) - 0.08;
    this.high = Math.log10(Math.max(...all)) + 0.08;
    this.element = document.createElement("figure");
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.caption = document.createElement("figcaption");
    this.element.append(this.caption, this.drawing);
    this.axes(floor);
    this.curve(onPick);
  }

  x(index) {
    return LEFT + ((WIDTH - LEFT - RIGHT) * (index + 0.5)) / this.points.length;
  }

  y(value) {
    return TOP + ((HEIGHT - TOP - BOTTOM) * (this.high - Math.log10(value))) / (this.high - this.low || 1);
  }

  axes(floor) {
    for (const value of ticks(this.low, this.high)) {
      const y = this.y(value);
      this.drawing.append(svg("path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` }));
      this.drawing.append(svg("text", { class: "tick y", x: LEFT - 8, y: y + 4 }, short(value)));
    }
    this.labels = this.points.map(({ steps }, index) => {
      const label = svg("text", { class: "tick x", x: this.x(index), y: HEIGHT - 9 }, String(steps));
      this.drawing.append(label);
      return label;
    });
    if (floor === null) return;
    const y = this.y(floor);
    this.drawing.append(svg("path", { class: "floor", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` }));
    this.drawing.append(svg("text", { class: "floor-label", x: WIDTH - RIGHT - 2, y: y - 5 }, "real images"));
  }

  curve(onPick) {
    this.marker = svg("path", { class: "marker" });
    this.drawing.append(this.marker);
    const line = this.points.map(({ mean }, index) => `${index ? "L" : "M"}${this.x(index)} ${this.y(mean)}`).join("");
    this.drawing.append(svg("path", { class: "line", d: line }));
    this.dots = this.points.map(({ kind, mean, spread }, index) => {
      const x = this.x(index), high = this.y(mean + spread), low = this.y(Math.max(mean - spread, mean / 2));
      const dot = svg("g", { class: `dot ${kind}` });
      if (spread) dot.append(svg("path", { d: `M${x} ${high}V${low}` }));
      dot.append(svg("circle", { cx: x, cy: this.y(mean), r: 4.5 }));
      const width = (WIDTH - LEFT - RIGHT) / this.points.length;
      const target = svg("rect", { class: "target", x: x - width / 2, y: 0, width, height: HEIGHT });
      target.addEventListener("click", () => onPick(index));
      this.drawing.append(dot, target);
      return dot;
    });
  }

  mark(steps) {
    const index = this.points.findIndex((point) => point.steps === steps);
    this.dots.forEach((dot, at) => dot.classList.toggle("current", at === index));
    this.labels.forEach((label, at) => label.classList.toggle("current", at === index));
    if (index < 0) return;
    const { mean, spread } = this.points[index];
    this.marker.setAttribute("d", `M${this.x(index)} ${TOP - 8}V${HEIGHT - BOTTOM + 2}`);
    const value = document.createElement("strong");
    value.textContent = `${short(mean)}${this.unit}`;
    const note = document.createElement("span");
    note.textContent = spread ? ` ± ${short(spread)}` : "";
    this.caption.replaceChildren(`${this.title} `, value, note);
    const told = this.points.map((point) => `${point.steps} steps ${short(point.mean)}${this.unit}`).join(", ");
    this.drawing.setAttribute("aria-label", `${this.title} by position: ${told}`);
  }
}

export function short(value) {
  if (value === 0) return "0";
  return Number(value.toPrecision(value >= 100 ? 3 : 2)).toLocaleString("en", { maximumFractionDigits: 4 });
}

// Round numbers between two powers of ten: three to six of them.
function ticks(low, high) {
  const choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]];
  for (const digits of choices) {
    const found = [];
    for (let power = Math.floor(low); power <= high; power++) {
      for (const digit of digits) {
        const value = digit * 10 ** power;
        if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(value);
      }
    }
    if (found.length >= 3) return found;
  }
  return [10 ** low, 10 ** high];
}
