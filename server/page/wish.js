// What to draw: a sentence with a choice for each slot and a line for one's own words, a class picker, or nothing.

const BUTTONS = 24; // classes

export class Wish {
  // conditioning: as in GET /models. onChange(): called when the wish has changed.
  constructor(conditioning, { sentence, words, input, fieldset }, onChange) {
    this.conditioning = conditioning;
    this.input = input;
    this.choices = {};
    if (conditioning.kind === "prompt" || conditioning.kind === "text") {
      if (conditioning.kind === "prompt") {
        this.build(sentence, onChange);
        input.addEventListener("input", () => this.recognise());
      } else {
        input.value = conditioning.example;
      }
      words.hidden = false;
      input.addEventListener("change", onChange);
    } else if (conditioning.kind === "label") {
      this.pick(sentence, onChange);
    } else {
      fieldset.hidden = true;
    }
  }

  // The fields of a request that say what to draw.
  get fields() {
    const { kind } = this.conditioning;
    if (kind === "prompt" || kind === "text") return { prompt: this.input.value };
    if (kind === "label") return { label: this.label };
    return {};
  }

  get text() {
    const { kind } = this.conditioning;
    if (kind === "prompt" || kind === "text") return this.input.value.trim();
    if (kind === "label") return this.label;
    return "";
  }

  // The sentence about two things where the family knows relations; the part about the second hides while there is none.
  build(sentence, onChange) {
    const { template, relation } = this.conditioning;
    const seconds = Object.values(relation?.second ?? {});
    this.second = document.createElement("span");
    let place = sentence;
    for (const part of (relation?.template ?? template).split(/(\{[^}]+\})/)) {
      const slot = part.match(/^\{(.+)\}$/)?.[1];
      if (place === this.second && !slot && seconds.every((name) => this.choices[name])) place = sentence;
      if (!slot) {
        place.append(part);
        continue;
      }
      const choice = select(slot, this.conditioning.slots[slot].map((word) => [word, word]), slot === relation?.slot ? null : "any");
      choice.addEventListener("change", () => {
        this.compose();
        onChange();
      });
      this.choices[slot] = choice;
      place.append(choice);
      if (slot === relation?.slot) {
        sentence.append(this.second);
        place = this.second;
      }
    }
    for (const [slot, choice] of Object.entries(this.choices)) {
      const open = slot === relation?.slot ? 0 : 1; // "any", which is not a word to begin with
      choice.selectedIndex = open + Math.floor(Math.random() * (choice.length - open));
    }
    this.compose();
    sentence.hidden = false;
  }

  // A few classes are buttons to choose one of, many are a list.
  pick(sentence, onChange) {
    const { labels } = this.conditioning;
    this.label = labels[Math.floor(Math.random() * labels.length)];
    const choose = (event) => {
      this.label = event.target.value;
      onChange();
    };
    if (labels.length <= BUTTONS) {
      for (const name of labels) sentence.append(radio(name, name === this.label, choose));
    } else {
      const choice = select("label", labels.map((name) => [name, name]), null);
      choice.value = this.label;
      choice.addEventListener("change", choose);
      sentence.append(choice);
    }
    sentence.classList.add("classes");
    sentence.hidden = false;
  }

  get alone() {
    const { slots, relation } = this.conditioning;
    return !relation || this.choices[relation.slot].value === slots[relation.slot][0];
  }

  compose() {
    const { template, relation, filler } = this.conditioning;
    this.second.hidden = this.alone;
    const text = (this.alone ? template : relation.template).replace(/\{([^}]+)\}/g, (_, slot) => this.choices[slot].value);
    const said = text.replace(/\s+/g, " ").trim();
    this.input.value = filler.includes("an") ? said.replace(/\ba (?=[aeiou])/g, "an ") : said;
  }

  // Show in the sentence what the words name: those before a relation are of the first thing, those after it of the second.
  recognise() {
    const { slots, relation } = this.conditioning;
    const words = this.input.value.toLowerCase().split(/[^\p{L}\p{N}-]+/u);
    const phrases = relation ? [...slots[relation.slot], ...Object.keys(relation.reversed)] : [];
    const place = words.findIndex((word) => phrases.some((phrase) => phrase.split(" ")[0] === word));
    const phrase = phrases.find((known) => known.split(" ")[0] === words[place]);
    let [first, second] = place < 0 ? [words, []] : [words.slice(0, place), words.slice(place + 1)];
    if (relation?.reversed[phrase]) [first, second] = [second, first];
    const from = new Map(Object.entries(relation?.second ?? {}).flatMap(([one, other]) => [[one, first], [other, second]]));
    for (const [slot, choice] of Object.entries(this.choices)) {
      choice.value = slots[slot].find((word) => (from.get(slot) ?? words).includes(word)) ?? "";
    }
    if (relation) this.choices[relation.slot].value = relation.reversed[phrase] ?? phrase ?? slots[relation.slot][0];
    this.second.hidden = this.alone;
  }
}

function radio(name, checked, onChange) {
  const button = document.createElement("input");
  Object.assign(button, { type: "radio", name: "label", value: name, checked });
  button.addEventListener("change", onChange);
  const label = document.createElement("label");
  label.append(button, name);
  return label;
}

function select(name, options, open) {
  const element = document.createElement("select");
  element.setAttribute("aria-label", name);
  if (open !== null) element.append(new Option(`${open} ${name}`, ""));
  for (const [value, text] of options) element.append(new Option(text, value));
  return element;
}
