// The chat: turns of a question with pictures and an answer with what it took.

import { answer, contentOf, figuresList } from "./answer.js";
import { Compression } from "./compression.js";
import { announce, choices, field, fill, make } from "./element.js";
import { Frames } from "./frames.js";
import { forget, keep, kept } from "./keeping.js";
import { patiently } from "./patience.js";
import { sample, shownPicture, Tray } from "./pictures.js";
import { Failure } from "./server.js";

const TRIES = [
  ["scene.png", "How many shapes are there?"],
  ["relation.png", "Describe the image."],
  ["text.png", "What does the text say?"],
];
const NEAR_END_PX = 120;

/** What a turn is kept as: { question, pictures, answer, figures, state, trouble }. */
const newTurn = (question, pictures) => ({
  question,
  pictures,
  answer: "",
  figures: {},
  state: "asking",
  trouble: "",
});

export class Chat {
  name = "chat";
  title = "Chat";

  constructor(status) {
    this.status = status;
    this.turns = [];
    this.cards = [];
    this.compression = new Compression();
    this.frames = new Frames();
    this.tray = new Tray(
      () => this.card?.limits.max_images ?? 16,
      () => this.draw(),
    );
    this.build();
  }

  wants = (card) => card.capabilities.chat;

  get card() {
    return this.cards.find((card) => card.id === this.model.value);
  }

  build() {
    this.list = make("ol.turns", { "aria-label": "Conversation" });
    this.welcome = this.welcomed();
    this.text = make("textarea", {
      rows: 1,
      placeholder: "Type a question",
      "aria-label": "Question",
      enterkeyhint: "send",
    });
    this.text.addEventListener("input", () => this.draw());
    this.text.addEventListener("keydown", (event) => this.pressed(event));
    this.send = make("button.primary", { type: "submit", disabled: true }, "Send"); // until it is drawn
    this.stop = make(
      "button.primary",
      { type: "button", hidden: true, onclick: () => this.controller?.abort() },
      "Stop",
    );
    const row = make(
      "div.row",
      {},
      this.tray.buttons,
      make("span.hint", {}, "or drop, or paste"),
      this.send,
      this.stop,
    );
    this.form = make(
      "form.composer",
      { onsubmit: (event) => this.submitted(event) },
      this.tray.element,
      this.text,
      row,
    );
    const talk = make("div.talk", {}, this.welcome, this.list, this.form);
    this.element = make("section.chat", {}, talk, this.settings());
  }

  settings() {
    this.model = choices([], "");
    this.model.addEventListener("change", () => this.offerWays());
    this.system = make("textarea", { rows: 2 });
    this.temperature = make("input", { type: "number", min: 0, max: 2, step: 0.1, placeholder: "the model's own" });
    this.most = make("input", { type: "number", min: 1, step: 1, value: 256 });
    this.fresh = make("button", { type: "button", onclick: () => this.clear() }, "New chat");
    const more = make(
      "details",
      {},
      make("summary", {}, "More"),
      field("Longest answer, tokens", this.most),
      this.frames.element,
      field("Temperature", this.temperature, "0 takes the likeliest word."),
      field("Instructions", this.system, "Told to the model before everything else."),
    );
    const body = make("div.settings", {}, field("Model", this.model), this.compression.element, more, this.fresh);
    return make(
      "aside",
      { "aria-label": "Settings" },
      make("details.fold", { open: true }, make("summary", {}, "Settings"), body),
    );
  }

  welcomed() {
    const tries = TRIES.map(([name, words]) => {
      const picture = make("img", { src: `page/samples/${name}`, alt: "", width: 56, height: 56 });
      return make(
        "button.try",
        { type: "button", onclick: () => this.tried(name, words) },
        picture,
        make("span", {}, words),
      );
    });
    return make(
      "div.welcome",
      {},
      make("h2", {}, "Ask about a picture"),
      make("p", {}, "Choose one below, or try one of these drawings:"),
      make("div.tries", {}, ...tries),
    );
  }

  async tried(name, words) {
    this.tray.set([await sample(name)]);
    this.text.value = words;
    this.form.requestSubmit();
  }

  /** Take the chat up that this tab had before it was loaded again. */
  async restore() {
    const turns = (await kept()) ?? [];
    for (const turn of turns) {
      if (turn.state === "asking")
        Object.assign(turn, { state: "stopped", trouble: "The page was loaded again meanwhile." });
      this.turns.push(turn);
      this.list.append(this.shown(turn));
    }
    this.draw();
    scrollTo(0, document.body.scrollHeight);
  }

  offer(cards) {
    this.cards = cards;
    const names = cards.map((card) => card.id);
    const chosen = names.includes(this.model.value) ? this.model.value : names[0];
    fill(this.model, names, chosen);
    if (this.card) this.offerWays();
    this.draw();
  }

  offerWays() {
    this.compression.offer(this.card);
    this.frames.offer(this.card);
  }

  pressed(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.send.disabled && !this.send.hidden) this.form.requestSubmit();
    }
    if (event.key === "Escape") this.controller?.abort();
  }

  submitted(event) {
    event.preventDefault();
    if (this.send.disabled || this.controller) return;
    const turn = newTurn(this.text.value.trim(), this.tray.take());
    this.text.value = "";
    this.turns.push(turn);
    this.list.append(this.shown(turn));
    this.text.focus();
    this.run(turn);
  }

  /** Ask a turn's question; what an earlier try of it brought is forgotten. */
  async run(turn) {
    const controller = (this.controller = new AbortController());
    this.form.scrollIntoView({ block: "end" });
    try {
      const ask = () => {
        Object.assign(turn, { answer: "", figures: {}, state: "asking", trouble: "" });
        this.redraw(turn);
        return answer(this.fields(turn), controller.signal, (piece) => this.told(turn, piece));
      };
      const waits = (words) => this.redraw(Object.assign(turn, { answer: "", trouble: words }));
      turn.figures = await patiently(ask, this.status, controller.signal, waits);
      turn.state = "done";
      if (turn.figures.reason === "length") turn.trouble = "Cut here: the longest answer is set under Settings.";
      else if (!turn.answer.trim()) turn.trouble = "The model had nothing to say to these words.";
      announce(turn.answer.trim() || turn.trouble);
    } catch (failure) {
      if (!(failure instanceof Failure)) console.error(failure);
      const isStopped = failure.kind === "stopped";
      Object.assign(turn, {
        state: isStopped ? "stopped" : "failed",
        trouble: isStopped ? "Stopped." : failure.message,
      });
      announce(turn.trouble);
    } finally {
      this.controller = null;
      this.redraw(turn);
      keep(this.turns);
    }
  }

  fields(turn) {
    const history = this.turns.slice(0, this.turns.indexOf(turn)).filter((each) => each.answer.trim());
    const asked = (each) => contentOf(each.question, each.pictures, this.frames.areFrames);
    const messages = history.flatMap((each) => [
      { role: "user", content: asked(each) },
      { role: "assistant", content: each.answer },
    ]);
    messages.push({ role: "user", content: asked(turn) });
    if (this.system.value.trim()) messages.unshift({ role: "system", content: this.system.value.trim() });
    const counts = [...history, turn].map((each) => each.pictures.length);
    const fields = { model: this.model.value, messages, max_tokens: Number(this.most.value) || 256 };
    if (this.temperature.value !== "") fields.temperature = Number(this.temperature.value);
    return { ...fields, ...this.frames.fields(counts), ...this.compression.fields(counts.some(Boolean)) };
  }

  told(turn, piece) {
    turn.answer += piece;
    const isAtEnd = scrollY + innerHeight > document.body.scrollHeight - NEAR_END_PX;
    this.places.get(turn).words.textContent = turn.answer.trimStart();
    if (isAtEnd) scrollTo(0, document.body.scrollHeight);
  }

  shown(turn) {
    const words = make("p.words");
    const element = make("div.answer", {}, words);
    this.places ??= new Map();
    this.places.set(turn, { words, element });
    this.redraw(turn);
    const pictures = turn.pictures.length ? make("div.pictures", {}, ...turn.pictures.map(shownPicture)) : null;
    const asked = turn.question ? make("p.words", {}, turn.question) : null;
    return make("li", {}, make("div.question", {}, make("h3.unseen", {}, "You"), pictures, asked), element);
  }

  redraw(turn) {
    const { words, element } = this.places.get(turn);
    const isRunning = turn.state === "asking";
    words.textContent = turn.answer.trim();
    const trouble = turn.trouble ? make("p.trouble", { class: `trouble ${turn.state}` }, turn.trouble) : null;
    const dots =
      isRunning && !turn.answer && !turn.trouble ? make("p.dots", { "aria-label": "The model reads" }) : null;
    const figures = Object.keys(turn.figures).length ? figuresList(turn.figures) : null;
    const actions = isRunning ? null : this.actions(turn);
    element.setAttribute("aria-busy", String(isRunning));
    element.replaceChildren(
      ...[make("h3.unseen", {}, "Answer"), dots, words, trouble, figures, actions].filter(Boolean),
    );
    this.draw();
  }

  actions(turn) {
    const copy = async ({ target }) => {
      await navigator.clipboard.writeText(turn.answer.trim());
      target.textContent = "Copied";
      announce("Copied");
    };
    const canCopy = turn.answer.trim() && navigator.clipboard;
    const again = () => this.controller || this.run(turn);
    return make(
      "div.actions",
      {},
      canCopy ? make("button.quiet", { type: "button", onclick: copy }, "Copy") : null,
      turn === this.turns.at(-1) ? make("button.quiet", { type: "button", onclick: again }, "Ask again") : null,
    );
  }

  clear() {
    this.controller?.abort();
    this.turns = [];
    this.places?.clear();
    this.list.replaceChildren();
    this.tray.set([]);
    forget();
    this.text.focus();
  }

  draw() {
    if (!this.form) return;
    this.welcome.hidden = this.turns.length > 0;
    this.list.hidden = this.turns.length === 0;
    this.send.disabled = (!this.text.value.trim() && !this.tray.pictures.length) || !this.card;
    this.send.hidden = Boolean(this.controller);
    this.stop.hidden = !this.controller;
    this.fresh.disabled = this.turns.length === 0;
    for (const turn of this.turns.slice(0, -1)) {
      const old = this.places.get(turn).element.querySelector(".actions button:last-child");
      if (old?.textContent === "Ask again") old.remove();
    }
  }
}
