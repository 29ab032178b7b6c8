// One answer of a model: asked for, streamed, and what it took.

import { make } from "./element.js";
import { stream } from "./server.js";
import { count, seconds } from "./words.js";

const FEWEST_TIMED = 4; // a speed of fewer tokens says more of the clock than of the model

/**
 * Return a message's content: pictures first, since models were trained to read them before the words.
 * @param {boolean} areFrames Several pictures are one video.
 */
export function contentOf(text, pictures, areFrames = false) {
  if (!pictures.length) return text;
  const urls = pictures.map((picture) => picture.url);
  const shown =
    areFrames && urls.length > 1
      ? [{ type: "video", video: urls }]
      : urls.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...shown, { type: "text", text }] : shown;
}

/**
 * Ask, and hand every piece to `told` as it comes; return what it took.
 * @throws {Failure}
 */
export async function answer(fields, signal, told) {
  const body = { ...fields, stream: true, stream_options: { include_usage: true } };
  const started = performance.now();
  const figures = { pieces: 0 };
  for await (const event of stream("v1/chat/completions", { body, signal })) {
    const [choice] = event.choices;
    if (choice?.delta?.content) {
      figures.first_token_s ??= (performance.now() - started) / 1000;
      figures.pieces += 1;
      told(choice.delta.content);
    }
    if (choice?.finish_reason) figures.reason = choice.finish_reason;
    if (event.usage) Object.assign(figures, counted(event.usage, event.timings));
  }
  figures.first_token_s ??= (performance.now() - started) / 1000;
  return figures;
}

function counted(usage, timings) {
  const details = usage.prompt_tokens_details ?? {};
  const decode_s = timings ? timings.total_s - timings.first_token_s : 0;
  return {
    prompt_tokens: usage.prompt_tokens,
    tokens: usage.completion_tokens,
    image_tokens: details.image_tokens ?? 0,
    kept_image_tokens: details.kept_image_tokens ?? details.image_tokens ?? 0,
    reused_tokens: details.cached_tokens ?? 0,
    rows_before: details.cache_rows_before ?? 0,
    rows_after: details.cache_rows_after ?? details.cache_rows_before ?? 0,
    tokens_per_s:
      usage.completion_tokens >= FEWEST_TIMED && decode_s > 0 ? (usage.completion_tokens - 1) / decode_s : null,
  };
}

/** Return an answer's figures as a list of names and values. */
export function figuresList(figures) {
  const told = [];
  if (figures.image_tokens) told.push(["Picture tokens", part(figures.kept_image_tokens, figures.image_tokens)]);
  if (figures.prompt_tokens) told.push(["Prompt", prompt(figures)]);
  if (figures.rows_before) told.push(["Cache rows", part(figures.rows_after, figures.rows_before)]);
  if (figures.first_token_s !== undefined) told.push(["First token", seconds(figures.first_token_s)]);
  if (figures.tokens !== undefined) told.push(["Answer", answered(figures)]);
  return make(
    "dl.figures",
    {},
    ...told.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

const answered = ({ tokens, tokens_per_s }) =>
  tokens_per_s ? `${count(tokens)} tokens, ${count(Math.round(tokens_per_s))} tokens/s` : `${count(tokens)} tokens`;

const prompt = ({ prompt_tokens, reused_tokens }) =>
  reused_tokens ? `${count(prompt_tokens)} tokens, ${count(reused_tokens)} reused` : `${count(prompt_tokens)} tokens`;

const part = (kept, all) => (kept === all ? count(all) : `${count(kept)} of ${count(all)}`);
