// Two ways to answer one question, side by side: two variants, or one with fewer tokens or rows.

import { answer, contentOf, figuresList } from "./answer.js";
import { Compression } from "./compression.js";
import { announce, choices, field, fill, make } from "./element.js";
import { patiently } from "./patience.js";
import { Tray } from "./pictures.js";
import { Failure } from "./server.js";

const MOST_TOKENS = 256;

class Side {
  constructor(letter, status) {
    this.status = status;
    this.compression = new Compression();
    this.model = choices([], "");
    this.model.addEventListener("change", () => this.compression.offer(this.card));
    this.result = make("div.answer");
    const settings = make("div.settings", {}, field("Model", this.model), this.compression.element);
    this.element = make("section.side", { "aria-label": letter }, make("h3", {}, letter), settings, this.result);
  }

  get card() {
    return this.cards.find((card) => card.id === this.model.value);
  }

  offer(cards, place) {
    this.cards = cards;
    const names = cards.map((card) => card.id);
    const chosen = names.includes(this.model.value) ? this.model.value : names[Math.min(place, names.length - 1)];
    fill(this.model, names, chosen);
    this.compression.offer(this.card);
  }

  async ask(question, pictures, signal) {
    const words = make("p.words");
    this.result.replaceChildren(words);
    const fields = {
      model: this.model.value,
      messages: [{ role: "user", content: contentOf(question, pictures) }],
      max_tokens: MOST_TOKENS,
      ...this.compression.fields(pictures.length > 0),
    };
    const work = () => {
      this.result.replaceChildren(words);
      words.textContent = "";
      return answer(fields, signal, (piece) => (words.textContent = (words.textContent + piece).trimStart()));
    };
    const waits = (told) => this.result.replaceChildren(make("p.trouble", {}, told));
    const figures = await patiently(work, this.status, signal, waits);
    this.result.append(figuresList(figures));
    return words.textContent.trim();
  }

  fail(failure) {
    this.result.append(make("p.trouble.failed", {}, failure.message));
  }
}

export class Compare {
  name = "compare";
  title = "Compare";

  constructor(status) {
    this.sides = ["A", "B"].map((letter) => new Side(letter, status));
    this.cards = [];
    this.tray = new Tray(
      () => this.cards[0]?.limits.max_images ?? 16,
      () => this.draw(),
    );
    this.text = make("textarea", { rows: 2 });
    this.text.addEventListener("input", () => this.draw());
    this.go = make("button.primary", { type: "submit" }, "Ask both");
    this.stop = make(
      "button.primary",
      { type: "button", hidden: true, onclick: () => this.controller?.abort() },
      "Stop",
    );
    this.verdict = make("p.verdict", { role: "status" });
    const row = make("div.row", {}, this.tray.buttons, this.go, this.stop);
    const form = make(
      "form.panel",
      { onsubmit: (event) => this.submitted(event) },
      field("Question", this.text),
      this.tray.element,
      row,
    );
    const told = "One is asked after the other, so that neither makes the other slower.";
    this.element = make(
      "section",
      {},
      make("h2", {}, "Two variants, one question"),
      make("p.lead", {}, told),
      form,
      this.verdict,
    );
    this.element.append(make("div.sides", {}, ...this.sides.map((side) => side.element)));
    this.draw();
  }

  wants = (card) => card.capabilities.chat;

  offer(cards) {
    this.cards = cards;
    this.sides.forEach((side, place) => side.offer(cards, place));
    this.draw();
  }

  async submitted(event) {
    event.preventDefault();
    const { signal } = (this.controller = new AbortController());
    this.verdict.textContent = "";
    this.draw();
    const said = [];
    for (const side of this.sides) {
      try {
        said.push(await side.ask(this.text.value.trim(), this.tray.pictures, signal));
      } catch (failure) {
        if (!(failure instanceof Failure)) console.error(failure);
        side.fail(failure);
        if (failure.kind === "stopped") break;
      }
    }
    if (said.length === 2)
      this.verdict.textContent = said[0] === said[1] ? "Both say the same." : "They say different things.";
    announce(said.map((words, place) => `${"AB"[place]}: ${words}`).join(". "));
    this.controller = null;
    this.draw();
  }

  draw() {
    if (!this.go) return;
    this.go.hidden = Boolean(this.controller);
    this.stop.hidden = !this.controller;
    this.go.disabled = (!this.text.value.trim() && !this.tray.pictures.length) || !this.cards.length;
  }
}
