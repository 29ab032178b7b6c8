// The server: requests with the key, streams of events, and every failure as a `Failure` in plain words.

const KEY = "pocketvlm-key";
const QUIET_S = 20; // a stream that says nothing for so long is asked whether it lives
const PROBE_S = 5;

/**
 * Why a request was not answered.
 * kind: "gone" (nobody answers, or the connection broke), "loading" (not ready), "busy" (429), "key" (401, 403),
 * "refused" (the server says what is wrong with the request), "broken" (a fault of the server).
 */
export class Failure extends Error {
  constructor(kind, message, retryAfter_s = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter_s = retryAfter_s;
  }
}

/** The key lives as long as the tab, and goes nowhere but into the Authorization header of this server. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

/** Return an answered response; a path is relative to the page, so that a prefix before it is kept. */
export async function ask(path, { body = null, signal = null } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const sent = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
  if (body) sent.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, sent);
  } catch (error) {
    throw failureOf(error, signal);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw failureOf(error, options?.signal);
  }
}

/** Yield the events of a streamed answer; it must end with [DONE]. */
export async function* stream(path, { body, signal }) {
  const watch = new AbortController();
  const either = AbortSignal.any([signal, watch.signal]);
  const response = await ask(path, { body, signal: either });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const lost = () => watch.abort(new Failure("gone", "The network went away while the answer came."));
  addEventListener("offline", lost);
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await spoken(reader, watch);
      if (done) throw new Failure("gone", "The answer broke off: the server went away in the middle of it.");
      rest += value.replaceAll("\r", "");
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = dataOf(block);
        if (data === "[DONE]") return;
        if (data) yield checked(JSON.parse(data));
      }
    }
  } catch (error) {
    throw failureOf(error, signal);
  } finally {
    removeEventListener("offline", lost);
    reader.cancel().catch(() => {});
  }
}

/** Return what is read next; while nothing comes, ask now and then whether the server is still there. */
async function spoken(reader, watch) {
  const read = reader.read();
  for (;;) {
    const quiet = Symbol("quiet");
    let timer;
    const wait = new Promise((resolve) => (timer = setTimeout(resolve, QUIET_S * 1000, quiet)));
    const first = await Promise.race([read, wait]).finally(() => clearTimeout(timer));
    if (first !== quiet) return first;
    if ((await health()).state === "gone") watch.abort(new Failure("gone", "The server fell silent."));
  }
}

/** Return whether requests can be served: "ready", "loading" or "gone", and the server's reason. */
export async function health() {
  try {
    const response = await fetch("health/ready", { signal: AbortSignal.timeout(PROBE_S * 1000), cache: "no-store" });
    if (response.ok || response.status === 401) return { state: "ready", reason: "" };
    return { state: "loading", reason: (await response.json()).reason ?? "" };
  } catch {
    return { state: "gone", reason: "" };
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

function checked(event) {
  if (event.error) throw new Failure(kindOf(event.error), sentence(event.error.message));
  return event;
}

const kindOf = (error) => ({ overloaded: "busy", engine_dead: "loading" })[error.code] ?? "broken";

function failureOf(error, signal) {
  if (error instanceof Failure) return error;
  if (signal?.aborted) return signal.reason instanceof Failure ? signal.reason : new Failure("stopped", "Stopped.");
  return new Failure("gone", "The server does not answer.");
}

async function refusal(response) {
  const told = await response.json().catch(() => null);
  const reason = told?.error?.message ?? told?.detail ?? "";
  const retryAfter_s = Number(response.headers.get("Retry-After")) || 2;
  switch (response.status) {
    case 401:
    case 403:
      return new Failure("key", sentence(reason) || "The server wants an API key.");
    case 429:
      return new Failure("busy", sentence(reason) || "The server has too much to do.", retryAfter_s);
    case 502:
    case 503:
      return new Failure("loading", sentence(reason) || "The server cannot answer now.", retryAfter_s);
    case 413:
      return new Failure("refused", `That is too large for this server: ${reason || "leave a picture out"}.`);
    default:
      return new Failure(
        response.status < 500 ? "refused" : "broken",
        sentence(reason) || `The server answered ${response.status} and no reason.`,
      );
  }
}

function sentence(text) {
  const words = String(text ?? "").trim();
  if (!words) return "";
  return words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
}
