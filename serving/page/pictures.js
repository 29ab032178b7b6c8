// Pictures: chosen, photographed, dropped or pasted; made into what every server takes, and shown in a tray.

import { announce, make } from "./element.js";

const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp"];
const MOST_PX = 2048; // the longest side; no model here looks at more, and a phone's 12 megapixels are slow to send
const MOST_SENT_BYTES = 4e6;
const QUALITY = 0.92;

/**
 * Return a picture: { name, url, width_px, height_px, note }.
 * @param {Blob} file Whatever the browser can open; what servers refuse (HEIC, AVIF, BMP, SVG) is drawn anew.
 * @throws {Error} It is no picture that this browser opens; the message says so.
 */
export async function pictureOf(file, name = file.name || "pasted picture") {
  const opened = await open(file, name);
  const scale = Math.min(1, MOST_PX / Math.max(opened.width, opened.height));
  const size = { width_px: Math.round(opened.width * scale), height_px: Math.round(opened.height * scale) };
  const stays = scale === 1 && SENT_AS_IS.includes(file.type) && file.size <= MOST_SENT_BYTES;
  const url = stays ? await dataUrl(file) : drawn(opened.source, size, file.type);
  opened.close();
  const note = scale < 1 ? `scaled from ${opened.width} × ${opened.height}` : "";
  return { name, url, ...size, note };
}

async function open(file, name) {
  try {
    const bitmap = await createImageBitmap(file);
    return { source: bitmap, width: bitmap.width, height: bitmap.height, close: () => bitmap.close() };
  } catch {
    if (file.type === "image/svg+xml") return openVector(file, name);
    const what = file.size === 0 ? "is empty" : "is no picture that this browser can open";
    throw new Error(`${name} ${what}. Take a PNG, JPEG or WebP.`);
  }
}

async function openVector(file, name) {
  const image = new Image();
  image.src = await dataUrl(file);
  try {
    await image.decode();
  } catch {
    throw new Error(`${name} is no picture that this browser can open. Take a PNG, JPEG or WebP.`);
  }
  return { source: image, width: image.naturalWidth || 512, height: image.naturalHeight || 512, close() {} };
}

/** Photographs become JPEG; what has sharp edges or holes stays PNG, on white where it was transparent. */
function drawn(source, { width_px, height_px }, type) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width_px, height_px];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width_px, height_px);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width_px, height_px);
  const png = type === "image/png" || type === "image/svg+xml" ? canvas.toDataURL("image/png") : "";
  return png && png.length < MOST_SENT_BYTES ? png : canvas.toDataURL("image/jpeg", QUALITY);
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}

/** The pictures that go with the next question, and the buttons that add to them. */
export class Tray {
  /**
   * @param {() => number} limit How many one request may hold.
   * @param {() => void} changed Called when a picture came or went.
   */
  constructor(limit, changed = () => {}) {
    this.pictures = [];
    this.limit = limit;
    this.changed = changed;
    this.shown = make("ul.thumbs", { "aria-label": "Pictures" });
    this.trouble = make("p.trouble", { role: "alert" });
    this.element = make("div.tray", {}, this.shown, this.trouble);
    this.buttons = make(
      "div.adders",
      {},
      this.adder("Add a picture", {}),
      this.adder("Take a photo", { capture: "environment" }),
    );
    this.draw();
  }

  adder(words, how) {
    const input = make("input.unseen", { type: "file", accept: "image/*", multiple: !how.capture, ...how });
    input.addEventListener("change", async () => {
      await this.add([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    });
    return make(how.capture ? "label.button.camera" : "label.button", {}, input, words);
  }

  /** Add files one after the other; what cannot be added is told, and the rest is. */
  async add(files) {
    this.trouble.textContent = "";
    for (const file of files) {
      try {
        if (this.pictures.length >= this.limit())
          throw new Error(`One question takes ${this.limit()} pictures at most.`);
        this.pictures.push(await pictureOf(file));
      } catch (error) {
        this.trouble.textContent = error.message;
      }
    }
    this.draw();
  }

  take() {
    const taken = this.pictures;
    this.set([]);
    return taken;
  }

  set(pictures) {
    this.pictures = pictures;
    this.trouble.textContent = "";
    this.draw();
  }

  draw() {
    this.shown.replaceChildren(...this.pictures.map((picture, place) => this.thumb(picture, place)));
    this.shown.hidden = this.pictures.length === 0;
    this.changed();
  }

  thumb(picture, place) {
    const remove = () => {
      this.pictures.splice(place, 1);
      announce(`${picture.name} is taken away`);
      this.draw();
      this.buttons.querySelector("input").focus();
    };
    const cross = make(
      "button.cross",
      { type: "button", "aria-label": `Take ${picture.name} away`, onclick: remove },
      "×",
    );
    return make("li", {}, shownPicture(picture), cross);
  }
}

export function shownPicture(picture) {
  const size = `${picture.width_px} × ${picture.height_px}`;
  const told = picture.note ? `${picture.name}, ${size}, ${picture.note}` : `${picture.name}, ${size}`;
  return make("img", { src: picture.url, alt: picture.name, title: told });
}

/** Take files that are dropped or pasted anywhere on the page into the tray of what is shown now. */
export function takeFromEverywhere(tray) {
  const cover = document.getElementById("dropping");
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    cover.hidden = !tray();
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) cover.hidden = true;
  });
  addEventListener("drop", (event) => {
    cover.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    tray()?.add([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || !tray()) return;
    event.preventDefault();
    tray().add(files);
  });
}

/** Return a drawing that comes with the page. */
export async function sample(name) {
  const response = await fetch(`page/samples/${name}`);
  return pictureOf(await response.blob(), name);
}
