"""Score the shipped checkpoints on held-out data: `python -m reference.evaluate`.

Vision-language models by exact match of greedy replies, the dual encoder by zero-shot accuracy and recall@1; each with
n and the 95 % Wilson interval. Models run in float32. `vlm` and `clip` are loaded as anyone would load them, the others
by their own modules: transformers has no class for the mixture, and wants `accelerate` for the ternary one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

from reference import captions
from reference.bitnet import is_bitnet, load_bitnet
from reference.mote import is_mote, load_mote
from reference.scenes import TASKS, Example, held_out

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
MODELS = ("vlm", "vlm-ternary", "vlm-mote", "clip")
_Z_95 = 1.959964
_BATCH = 25
_RECALL_CAPTIONS = 200


@dataclasses.dataclass(frozen=True)
class Score:
    """Right answers out of n."""

    num_right: int
    n: int

    @property
    def share(self) -> float:
        """Return the accuracy, 0 to 1."""
        return self.num_right / self.n

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share (E. B. Wilson 1927, "Probable inference", score interval)."""
        p, spread = self.share, _Z_95**2 / self.n
        middle = (p + spread / 2) / (1 + spread)
        half = _Z_95 / (1 + spread) * math.sqrt(p * (1 - p) / self.n + spread / (4 * self.n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def line(self, name: str) -> str:
        """Return one row of a Markdown table."""
        low, high = self.interval()
        return f"| {name} | {self.share:.1%} | {low:.1%} - {high:.1%} | {self.n} |"


class Reader:
    """A vision-language checkpoint that answers examples."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Load model and processor from a folder."""
        self.processor = AutoProcessor.from_pretrained(folder)
        if is_mote(folder):
            self.model = load_mote(folder)
        elif is_bitnet(folder):
            self.model = load_bitnet(folder)
        else:
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def replies(self, examples: list[Example], max_new_tokens: int = 64) -> list[str]:
        """Return the greedy reply to each example's last question."""
        prompts = [self.processor.apply_chat_template(e.messages(), add_generation_prompt=True) for e in examples]
        images = [list(e.images) for e in examples]
        inputs = self.processor(text=prompts, images=images, padding=True, return_tensors="pt")
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [reply.strip() for reply in self.processor.batch_decode(new, skip_special_tokens=True)]

    def score(self, task: str, n: int, seed: int) -> Score:
        """Return the exact-match score on a held-out set."""
        examples = held_out(task, n, seed)
        num_right = 0
        for start in range(0, n, _BATCH):
            batch = examples[start : start + _BATCH]
            num_right += sum(e.is_right(r) for e, r in zip(batch, self.replies(batch), strict=True))
        return Score(num_right, n)


class Matcher:
    """A CLIP checkpoint that says how well images and texts match."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Load model and processor from a folder."""
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def similarities(self, shown: list[captions.CaptionedImage], texts: list[str]) -> torch.Tensor:
        """Return the scaled cosines [images, texts]."""
        inputs = self.processor(
            text=texts, images=[s.image for s in shown], return_tensors="pt", padding=True, truncation=True
        )
        return self.model(**inputs).logits_per_image

    def zero_shot(self, kind: str, n: int, seed: int) -> Score:
        """Return how many images of one shape get the right "shape" or "colour"."""
        labels = captions.SHAPE_LABELS if kind == "shape" else captions.COLOUR_LABELS
        shown = captions.held_out_labels(kind, n, seed)
        best = self.similarities(shown, list(labels.values())).argmax(1).tolist()
        return Score(sum(list(labels)[b] == s.label for b, s in zip(best, shown, strict=True)), n)

    def recall(self, seed: int) -> tuple[Score, Score]:
        """Return recall@1 from image to text and from text to image, among 200 distinct captions."""
        shown = captions.held_out(_RECALL_CAPTIONS, seed)
        table = self.similarities(shown, [s.caption for s in shown])
        own = torch.arange(len(shown))
        rights = [int((table.argmax(axis) == own).sum()) for axis in (1, 0)]
        return Score(rights[0], len(shown)), Score(rights[1], len(shown))


def scores(args: argparse.Namespace) -> Iterator[tuple[str, Score]]:
    """Yield the name and score of everything asked for."""
    for name in (name for name in args.models if name != "clip"):
        reader = Reader(args.checkpoints / name)
        for task in args.tasks:
            yield f"{name} {task}", reader.score(task, args.n, args.seed)
    if "clip" in args.models:
        encoder = Matcher(args.checkpoints / "clip")
        for kind in ("shape", "colour"):
            yield f"clip zero-shot {kind}", encoder.zero_shot(kind, args.n, args.seed)
        to_text, to_image = encoder.recall(args.seed)
        yield "clip recall@1 image to text", to_text
        yield "clip recall@1 text to image", to_image


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table, and write the numbers as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoints", type=pathlib.Path, default=CHECKPOINTS, help="folder of the checkpoints")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="of vision-language models")
    parser.add_argument("--n", type=int, default=500, help="examples a task")
    parser.add_argument("--seed", type=int, default=0, help="which held-out set, 0 to 255")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print("| what | right | 95 % interval | n |\n|---|---|---|---|")
    found = {}
    for name, score in scores(args):
        print(score.line(name), flush=True)
        found[name] = {"right": score.num_right, "n": score.n, "share": score.share, "interval_95": score.interval()}
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "scores": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
