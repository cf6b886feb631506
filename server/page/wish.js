// What to draw: a sentence with a choice for each slot and a line for one's own words, a class picker, or nothing.

const BUTTONS = 24; // classes

export class Wish {
  // conditioning: as in GET /models. onChange(): called when the wish has changed.
  constructor(conditioning, { sentence, words, input, fieldset }, onChange) {
    this.conditioning = conditioning;
    this.input = input;
    this.choices = {};
    if (conditioning.kind === "prompt") {
      this.build(sentence, onChange);
      words.hidden = false;
      input.addEventListener("input", () => this.recognise());
      input.addEventListener("change", onChange);
    } else if (conditioning.kind === "label") {
      this.pick(sentence, onChange);
    } else {
      fieldset.hidden = true;
    }
  }

  // The fields of a request that say what to draw.
  get fields() {
    if (this.conditioning.kind === "prompt") return { prompt: this.input.value };
    if (this.conditioning.kind === "label") return { label: this.label };
    return {};
  }

  get text() {
    if (this.conditioning.kind === "prompt") return this.input.value.trim();
    if (this.conditioning.kind === "label") return this.label;
    return "";
  }

  build(sentence, onChange) {
    for (const part of this.conditioning.template.split(/(\{[^}]+\})/)) {
      const slot = part.match(/^\{(.+)\}$/)?.[1];
      if (!slot) {
        sentence.append(part);
        continue;
      }
      const choice = select(slot, this.conditioning.slots[slot].map((word) => [word, word]), "any");
      choice.addEventListener("change", () => {
        this.compose();
        onChange();
      });
      this.choices[slot] = choice;
      sentence.append(choice);
    }
    for (const choice of Object.values(this.choices)) choice.selectedIndex = 1 + Math.floor(Math.random() * (choice.length - 1));
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

  compose() {
    const text = this.conditioning.template.replace(/\{([^}]+)\}/g, (_, slot) => this.choices[slot].value);
    this.input.value = text.replace(/\s+/g, " ").trim();
  }

  // Show in the sentence what the words name.
  recognise() {
    const words = this.input.value.toLowerCase().split(/[^\p{L}\p{N}-]+/u);
    for (const [slot, choice] of Object.entries(this.choices)) {
      choice.value = this.conditioning.slots[slot].find((word) => words.includes(word)) ?? "";
    }
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
