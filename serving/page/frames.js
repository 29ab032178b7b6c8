// Several pictures as frames of a video, and how their tokens are laid out.

import { choices, field, fill } from "./element.js";

const PICTURES = "pictures";
const VIDEO = "a video, ";

export class Frames {
  constructor() {
    this.how = choices([PICTURES], PICTURES);
    this.element = field("Several pictures are", this.how, "Frames of a video are in the order of the pictures.");
  }

  /** Offer the layouts that a model can read; what was chosen stays where it can. */
  offer(card) {
    const names = [PICTURES, ...(card.video_layouts ?? []).map((layout) => VIDEO + layout)];
    fill(this.how, names, names.includes(this.how.value) ? this.how.value : PICTURES);
    this.element.hidden = names.length === 1;
  }

  get areFrames() {
    return this.how.value !== PICTURES;
  }

  /** Return the fields of a request whose turns show so many pictures each. */
  fields(counts) {
    if (!this.areFrames || !counts.some((count) => count > 1)) return {};
    return { video: { layout: this.how.value.slice(VIDEO.length) } };
  }
}
