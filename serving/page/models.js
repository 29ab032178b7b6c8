// What is served: each model's weights, and the quality that was measured before it was let in.

import { make } from "./element.js";
import { bytes, count, gate } from "./words.js";

export class Models {
  name = "models";
  title = "Quality";

  constructor() {
    this.list = make("div.models");
    const lead =
      "A smaller variant is measured beside the model that it was made of, and judged before it is served.";
    this.element = make(
      "section",
      {},
      make("h2", {}, "Served models, and what was measured"),
      make("p.lead", {}, lead),
      this.list,
    );
  }

  wants = () => true;

  offer(cards) {
    this.list.replaceChildren(...cards.map(shown));
  }
}

function shown(card) {
  const told = [
    ["Does", does(card.capabilities)],
    ["Family", card.model_type],
    ["Weights", bytes(card.weight_bytes)],
    ["Stored as", schemes(card.schemes)],
    ["Context", card.context_tokens ? `${count(card.context_tokens)} tokens` : null],
    ["Cache", card.kv_cache],
  ].filter(([, value]) => value);
  const facts = make(
    "dl.facts",
    {},
    ...told.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
  const measured = card.gates.filter((each) => each.basis !== "canary");
  return make(
    "article.panel",
    {},
    make("h3", {}, card.id, " ", verdict(card, measured)),
    facts,
    measured.length ? gates(measured) : null,
    ...card.unmeasured.map((each) => make("p.note", {}, `Not measured: ${gate(each.name)} (${each.reason}).`)),
    canaries(card.gates),
  );
}

function does({ chat, classify, embeddings, images }) {
  if (chat) return "answers about pictures";
  if (!embeddings) return "scores pictures and texts together";
  if (classify) return "embeds and classifies pictures and texts";
  return images ? "embeds pictures and texts" : "embeds texts";
}

/** One word for all components where they agree. */
function schemes(all) {
  const kinds = [...new Set(Object.values(all))];
  if (kinds.length === 1) return kinds[0];
  return Object.entries(all)
    .map(([component, scheme]) => `${component.replaceAll("_", " ")} ${scheme}`)
    .join(", ");
}

function verdict(card, measured) {
  const failed = card.gates.filter((each) => !each.passed).length;
  if (failed) return make("span.badge.bad", {}, `${failed} of ${card.gates.length} gates failed`);
  if (measured.length) return make("span.badge.good", {}, `passed ${measured.length} of ${measured.length}`);
  return make("span.badge", {}, card.gated === null ? "the original" : "not measured");
}

function gates(all) {
  const rows = all.map((each) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, gate(each.name)),
      make("td", {}, number(each.value)),
      make("td", {}, `${each.direction === "min" ? "at least" : "at most"} ${number(each.limit)}`),
      make("td", {}, count(each.n)),
      make("td", { class: each.passed ? "good" : "bad" }, each.passed ? "passed" : "failed"),
    ),
  );
  const head = ["What", "Measured", "Limit", "Samples", "Verdict"].map((words) =>
    make("th", { scope: "col" }, words),
  );
  const table = make("table.gates", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return make("div.scroll", { tabindex: 0, role: "region", "aria-label": "Gates" }, table);
}

function canaries(all) {
  const canary = all.filter((each) => each.basis === "canary");
  if (!canary.length) return null;
  const worst = Math.min(...canary.map((each) => each.value));
  return make(
    "p.note",
    {},
    `Its ${canary.length} graphs run as they did where they were made: cosine ${number(worst)} or better.`,
  );
}

const number = (value) => (typeof value === "number" ? Number(value.toPrecision(4)).toString() : String(value));
