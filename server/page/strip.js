// The strip: one wish and one seed at every position of the dial, each image shown as soon as it is there.

import { generate } from "/page/api.js";

export class Strip {
  // onPick(index): called when a tile is chosen.
  constructor(list, positions, onPick) {
    this.positions = positions;
    this.running = null;
    this.tiles = positions.map((position, index) => {
      const tile = document.createElement("button");
      tile.type = "button";
      tile.className = position.kind;
      const image = document.createElement("img");
      image.alt = "";
      image.hidden = true;
      const frame = document.createElement("span");
      frame.className = "frame";
      frame.append(image);
      const label = document.createElement("span");
      label.textContent = position.steps;
      tile.append(frame, label);
      tile.setAttribute("aria-label", `${position.steps} steps`);
      tile.addEventListener("click", () => onPick(index));
      const item = document.createElement("li");
      item.append(tile);
      list.append(item);
      return { tile, image };
    });
  }

  mark(index) {
    this.tiles.forEach(({ tile }, at) => tile.classList.toggle("current", at === index));
  }

  // The images are of another wish or seed than the page now shows.
  age() {
    for (const { tile } of this.tiles) tile.classList.add("stale");
  }

  // Draw all positions at once; the server gives each network its turn. Resolves when the last is there.
  async draw(wish) {
    this.running?.abort();
    const mine = (this.running = new AbortController());
    const draws = this.positions.map((position, index) => this.drawTile(index, { ...wish, steps: position.steps }, mine.signal));
    const results = await Promise.allSettled(draws);
    if (mine.signal.aborted) return;
    this.running = null;
    const failed = results.find((result) => result.status === "rejected");
    if (failed) throw failed.reason;
  }

  async drawTile(index, wish, signal) {
    const { tile, image } = this.tiles[index];
    tile.classList.remove("stale");
    tile.classList.add("waiting");
    image.hidden = true;
    try {
      const answer = await generate(wish, signal);
      image.src = `data:image/png;base64,${answer.data[0].b64_json}`;
      image.hidden = false;
      const milliseconds = Math.round(answer.timings.total_seconds * 1000);
      tile.setAttribute("aria-label", `${wish.steps} steps, drawn in ${milliseconds} milliseconds`);
      tile.title = `${milliseconds} ms`;
    } finally {
      if (!signal.aborted) tile.classList.remove("waiting");
    }
  }
}
