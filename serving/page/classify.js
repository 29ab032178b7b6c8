// Pictures sorted by labels that nobody trained the model for.

import { announce, choices, field, fill, make, nextId } from "./element.js";
import { patiently } from "./patience.js";
import { sample, shownPicture, Tray } from "./pictures.js";
import { askJson, Failure } from "./server.js";
import { percent } from "./words.js";

const LABELS = "a circle\na square\na star\na triangle";
const TEMPLATES = ["{}", "a photo of {}", "a photo of a {}", "a drawing of a {}"];

/** What both views of dual encoders share: a model, pictures, lines of text, a button, and results. */
export class Lines {
  constructor(status, { words, title, lead, value, note, button, name }) {
    Object.assign(this, { status, name, cards: [] });
    this.model = choices([], "");
    this.text = make("textarea", { rows: 5, spellcheck: "false" });
    this.text.value = value;
    this.text.addEventListener("input", () => this.draw());
    this.tray = new Tray(
      () => this.cards[0]?.limits.max_images ?? 16,
      () => this.draw(),
    );
    this.go = make("button.primary", { type: "submit" }, button);
    this.results = make("div.results", {});
    this.trouble = make("p.trouble", { role: "alert" });
    const example = make("button", { type: "button", onclick: () => this.tried() }, "Use a sample");
    this.example = example;
    this.settings = make("div.settings", {}, field(words, this.text, note), field("Model", this.model));
    const row = make("div.row", {}, this.tray.buttons, example, this.go);
    const form = make(
      "form.panel",
      { onsubmit: (event) => this.submitted(event) },
      this.tray.element,
      this.settings,
      row,
    );
    const head = [make("h2", {}, title), make("p.lead", {}, lead)];
    this.element = make(
      "section",
      {},
      ...head,
      make("div.halves", {}, form, make("div", {}, this.trouble, this.results)),
    );
    this.draw();
  }

  wants = (card) => card.capabilities.classify;

  get lines() {
    return [
      ...new Set(
        this.text.value
          .split("\n")
          .map((line) => line.trim())
          .filter(Boolean),
      ),
    ];
  }

  offer(cards) {
    this.cards = cards;
    const names = cards.map((card) => card.id);
    fill(this.model, names, names.includes(this.model.value) ? this.model.value : names[0]);
    this.model.closest(".field").hidden = names.length < 2;
    this.draw();
  }

  async tried() {
    await this.tray.set([...this.tray.pictures, await sample("relation.png")]);
  }

  async submitted(event) {
    event.preventDefault();
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    this.trouble.textContent = "";
    const waits = (told) => (this.trouble.textContent = told);
    try {
      const pictures = [...this.tray.pictures];
      const found = await patiently(() => this.ask(pictures, signal), this.status, signal, waits);
      this.trouble.textContent = "";
      this.results.replaceChildren(...found);
      announce(this.results.innerText);
    } catch (failure) {
      if (!(failure instanceof Failure)) console.error(failure);
      if (failure.kind !== "stopped") this.trouble.textContent = failure.message;
    }
  }

  draw() {
    if (!this.go) return;
    this.go.disabled = !this.tray.pictures.length || !this.lines.length || !this.cards.length;
    this.example.hidden = this.tray.pictures.length > 0;
  }
}

export class Classify extends Lines {
  title = "Classify";

  constructor(status) {
    super(status, {
      name: "classify",
      title: "Which words fit the picture?",
      lead: "Write your own labels: the model was trained for none of them.",
      words: "Labels",
      value: LABELS,
      note: "One a line.",
      button: "Classify",
    });
    const known = make("datalist", { id: nextId() }, ...TEMPLATES.map((value) => make("option", { value })));
    this.template = make("input", { list: known.id, placeholder: "a photo of {}" });
    this.settings.append(
      field("Sentence around a label", this.template, "{} stands for the label. Empty: the model's own."),
      known,
    );
  }

  async ask(pictures, signal) {
    const body = {
      model: this.model.value,
      images: pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } })),
      labels: this.lines,
    };
    if (this.template.value.trim()) body.prompt_template = this.template.value.trim();
    const { data } = await askJson("v1/classify", { body, signal });
    return data.map((item, place) => make("article.result", {}, shownPicture(pictures[place]), bars(item.labels)));
  }
}

function bars(labels) {
  const rows = labels.map(({ label, score }, place) => {
    const bar = make("span.bar");
    bar.style.width = `${score * 100}%`;
    return make(
      "li",
      { class: place === 0 ? "best" : "" },
      make("span.label", {}, label),
      make("span.track", {}, bar),
      make("span.value", {}, percent(score)),
    );
  });
  return make("ol.bars", {}, ...rows);
}
