// Whether the server can be asked, what it serves, and the line on top that says so.

import { make } from "./element.js";
import { Failure, ask, askJson, hasKey, health, setKey } from "./server.js";

const CALM_MS = 15000;
const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 8000;

export class Status {
  /** @param {(cards: Object[]) => void} served Called with the models whenever they were asked for anew. */
  constructor(served) {
    this.served = served;
    this.notice = document.getElementById("notice");
    this.state = "unknown";
    this.reason = "";
    this.retry_ms = FIRST_RETRY_MS;
    this.waiting = [];
    addEventListener("online", () => this.look());
    addEventListener("offline", () => this.tell({ state: "gone", reason: "" }));
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  /** Look now, and again in a while: soon where the server is away, seldom where it is well. */
  async look() {
    clearTimeout(this.timer);
    if (this.state === "key") return; // the form goes on
    await this.tell(await health());
    this.retry_ms = this.state === "ready" ? FIRST_RETRY_MS : Math.min(this.retry_ms * 1.5, LAST_RETRY_MS);
    clearTimeout(this.timer); // two looks may have overlapped
    this.timer = setTimeout(() => document.hidden || this.look(), this.state === "ready" ? CALM_MS : this.retry_ms);
  }

  async tell({ state, reason }) {
    const was = this.state;
    if (state === "ready" && was !== "ready") {
      if (!(await this.loadModels())) return;
      this.state = state;
      if (was !== "unknown" && was !== "key") this.say("The server is back.", "good");
      else this.say("");
      this.waiting.splice(0).forEach((resume) => resume());
    } else if (state !== "ready" && this.state !== "key") {
      this.state = state;
      this.reason = reason;
      this.say(this.trouble());
    }
  }

  /** Return whether the models are known; else the notice says why not. */
  async loadModels() {
    try {
      this.served((await askJson("v1/models")).data);
      return true;
    } catch (failure) {
      if (failure.kind === "key") this.wantKey(failure.message);
      else {
        this.state = failure.kind === "gone" ? "gone" : "loading";
        this.reason = failure.kind === "gone" ? "" : failure.message;
        this.say(this.trouble());
      }
      return false;
    }
  }

  trouble() {
    if (this.state === "gone") {
      return "The server does not answer. Nothing is lost: what you asked goes on by itself as soon as it is back.";
    }
    const reason = this.reason ? ` (${this.reason.replace(/\.$/, "")})` : "";
    return `The server is not ready${reason}. This page waits for it.`;
  }

  say(words, kind = "") {
    clearTimeout(this.fading);
    this.notice.className = kind;
    this.notice.replaceChildren(words);
    this.notice.hidden = !words;
    if (kind === "good") this.fading = setTimeout(() => this.say(""), 4000);
  }

  /** A request failed in a way that says something of the server: look again, or ask for a key. */
  noted(failure) {
    if (failure.kind === "key") this.wantKey(failure.message);
    else if (failure.kind === "gone" || failure.kind === "loading") {
      this.tell({ state: failure.kind, reason: failure.kind === "gone" ? "" : failure.message });
      this.retry_ms = FIRST_RETRY_MS;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.look(), this.retry_ms);
    }
  }

  /** Return when the server can be asked again; rejects where the signal says stop. */
  ready(signal) {
    return new Promise((resolve, reject) => {
      const stop = () => reject(new Failure("stopped", "Stopped."));
      if (signal.aborted) stop();
      signal.addEventListener("abort", stop, { once: true });
      this.waiting.push(resolve);
    });
  }

  wantKey(reason, isAnother = false) {
    if (this.state === "key" && !isAnother) return; // somebody may be typing
    this.state = "key";
    const words = hasKey() ? `${reason} Another key:` : "This server wants an API key:";
    const input = make("input", {
      type: "password",
      id: "key",
      autocomplete: "off",
      required: true,
      spellcheck: "false",
    });
    const use = async (event) => {
      event.preventDefault();
      setKey(input.value.trim());
      if (!(await this.accepted())) return;
      await this.tell({ state: "ready", reason: "" });
      if (this.state === "key") this.state = "unknown";
      this.look();
    };
    const form = make(
      "form.key",
      { onsubmit: use },
      make("label", { for: "key" }, words),
      input,
      make("button.primary", {}, "Use it"),
    );
    this.say(form);
    input.focus();
  }

  async accepted() {
    try {
      await ask("v1/models");
      return true;
    } catch (failure) {
      if (failure.kind !== "key") return true;
      this.wantKey(failure.message, true);
      return false;
    }
  }
}
