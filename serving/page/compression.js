// The two sliders: which share of a picture's tokens is read, and which share of the prompt's rows stays in the cache.

import { choices, field, make, nextId } from "./element.js";
import { percent } from "./words.js";

const LEAST = 5; // per cent

/** What a model offers of each kind: its ways, how the server does it unasked, and how a request says it. */
const KINDS = [
  {
    name: "vision",
    words: "Picture tokens read",
    note: "Fewer are faster, and see less.",
    how: "method",
    share: "keep",
    usual: "uniform",
    ways: (card) => card.vision_methods,
    own: (card) => card.vision_default,
  },
  {
    name: "kv",
    words: "Cache rows kept",
    note: "Fewer take less memory while the answer is written.",
    how: "policy",
    share: "budget",
    usual: "snapkv",
    ways: (card) => card.kv_policies,
    own: (card) => card.kv_default,
  },
];

export class Compression {
  constructor() {
    this.element = make("div.compression");
    this.chosen = {};
  }

  /** Offer what a model can do; what was chosen stays where the model can do that too. */
  offer(card) {
    this.kinds = KINDS.filter((kind) => kind.ways(card)?.length);
    this.element.replaceChildren(...this.kinds.map((kind) => this.slider(kind, card)));
  }

  slider(kind, card) {
    const ways = kind.ways(card);
    const own = kind.own(card) ?? null;
    const before = this.chosen[kind.name];
    const way = [before?.way, own?.[kind.how], kind.usual, ways[0]].find((each) => ways.includes(each));
    const chosen = { way, share: before?.share ?? own?.[kind.share] ?? 1, own };
    this.chosen[kind.name] = chosen;
    const value = Math.round(chosen.share * 100);
    const range = make("input", { type: "range", min: LEAST, max: 100, step: 5, value, id: nextId() });
    const shown = make("output", { for: range.id });
    const how = choices(ways, way);
    how.setAttribute("aria-label", `${kind.words}: ${kind.how}`);
    const update = () => {
      chosen.share = Number(range.value) / 100;
      chosen.way = how.value;
      shown.textContent = percent(chosen.share);
      range.setAttribute("aria-valuetext", percent(chosen.share));
      how.hidden = chosen.share === 1;
    };
    range.addEventListener("input", update);
    how.addEventListener("change", update);
    update();
    const element = field(kind.words, range, kind.note);
    element.querySelector("label").append(shown);
    range.after(how);
    return element;
  }

  /** Return the fields of a request; what the server does unasked is left out, so that it needs no knowledge of it. */
  fields(hasPictures) {
    const fields = {};
    for (const kind of this.kinds ?? []) {
      const { way, share, own } = this.chosen[kind.name];
      const isOwn = share === (own?.[kind.share] ?? 1) && (share === 1 || way === own?.[kind.how]);
      if (isOwn || (kind.name === "vision" && !hasPictures)) continue;
      fields[kind.name] = { [kind.how]: way, [kind.share]: share };
    }
    return fields;
  }
}
