// How near pictures and texts are in the space that they share.

import { make } from "./element.js";
import { shownPicture } from "./pictures.js";
import { askJson } from "./server.js";
import { Lines } from "./classify.js";

const TEXTS = "a large red circle and a small blue star\na green triangle\na photo of a dog";

export class Similarity extends Lines {
  title = "Similarity";

  constructor(status) {
    super(status, {
      name: "similarity",
      title: "How near are words and pictures?",
      lead: "The cosine between their vectors: 1 is the same direction, 0 nothing in common. Compare within a column.",
      words: "Texts",
      value: TEXTS,
      note: "One a line.",
      button: "Compare",
    });
  }

  async ask(pictures, signal) {
    const shown = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
    const texts = this.lines;
    const body = { model: this.model.value, input: [...shown, ...texts] };
    const { data } = await askJson("v1/embeddings", { body, signal });
    const vectors = data.map((item) => item.embedding);
    const ofPictures = vectors.slice(0, pictures.length);
    const table = texts.map((_, row) => ofPictures.map((vector) => dot(vector, vectors[pictures.length + row])));
    return [
      make(
        "div.scroll",
        { tabindex: 0, role: "region", "aria-label": "Similarities" },
        tableOf(pictures, texts, table),
      ),
    ];
  }
}

const dot = (a, b) => a.reduce((sum, each, place) => sum + each * b[place], 0);

function tableOf(pictures, texts, table) {
  const best = pictures.map((_, column) => Math.max(...table.map((row) => row[column])));
  const head = make(
    "tr",
    {},
    make("td"),
    ...pictures.map((picture) => make("th", { scope: "col" }, shownPicture(picture))),
  );
  const rows = texts.map((text, row) => {
    const cells = table[row].map((value, column) => {
      const isBest = value === best[column];
      const bar = make("span.bar");
      bar.style.width = `${Math.max(0, value) * 100}%`;
      const told = make("span.value", {}, value.toFixed(3), isBest ? make("span.unseen", {}, " nearest") : null);
      return make("td", { class: isBest ? "best" : "" }, told, make("span.track", {}, bar));
    });
    return make("tr", {}, make("th", { scope: "row" }, text), ...cells);
  });
  return make("table.similar", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}
