"""Train the dual encoder: `python -m reference.train_clip`.

Contrastive (Radford et al. 2021, section 2.3) with two additions: every image also meets a caption that is almost
true of it (as in Yuksekgonul et al. 2023, "NegCLIP"), and pairs that happen to be true are not counted as negatives.
The image encoder starts from the shipped vision-language model's tower, so that model comes first.

A stopped run goes on where it was. `--smoke` takes five steps.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Iterator

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPModel, CLIPTokenizer

from reference import clip_model
from reference.contrast import Pair, pair
from reference.drawing_batches import drawn, first_seed
from reference.shipping import save_clip
from reference.training import MasterWeights, Run, Schedule

SEED = 20261121
HERE = pathlib.Path(__file__).parent
_FIRST_SEED = 1 << 38  # training seeds from here on belong to this script
_MAX_LOG_SCALE = 4.6052  # ln 100, as in CLIP
_NEVER = -1e4


class Pairs(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [B, 128, 128, 3], texts [2 B, T], is_negative [B, 2 B])."""

    def __init__(self, tokens: CLIPTokenizer, batch: int, start: int) -> None:
        """Begin at training seed `_FIRST_SEED + start`."""
        self._tokens = tokens
        self._batch = batch
        self._start = _FIRST_SEED + start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            pairs = [pair(seed + i) for i in range(self._batch)]
            seed += self._batch
            texts = [p.caption for p in pairs] + [p.near_miss for p in pairs]
            ids = self._tokens(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
            yield drawn([p.scene for p in pairs])[0], ids, negatives(pairs)


def negatives(pairs: list[Pair]) -> torch.Tensor:
    """Return which texts are false of which images: [B, 2 B] bool, near misses in the second half."""
    size = len(pairs)
    is_negative = torch.ones(size, 2 * size, dtype=torch.bool)
    captions = [p.caption for p in pairs]
    for i, image in enumerate(pairs):
        for j, text in enumerate(pairs):
            is_same = captions[i] == captions[j]
            if is_same or (text.claim is not None and text.claim.is_true_of(image.scene)):
                is_negative[i, j] = False
            if text.near_miss == captions[i] or (text.claim is not None and i != j):
                is_negative[i, size + j] = False
    return is_negative


def contrastive_loss(
    model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor, is_negative: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the symmetric loss and the share of images, and of texts, matched right inside the batch.

    Args:
        model: Computes in the arithmetic of its weights.
        pixels: [B, 128, 128, 3] uint8.
        ids: [2 B, T], the true captions first.
        is_negative: [B, 2 B] bool.
    """
    size = len(pixels)
    texts = clip_model.embed_texts(model, ids)
    scale = model.logit_scale.float().clamp(max=_MAX_LOG_SCALE).exp()
    logits = scale * clip_model.embed_images(model, pixels) @ texts.T
    own = torch.arange(size)
    is_compared = is_negative.clone()
    is_compared[own, own] = True
    logits = logits.masked_fill(~is_compared, _NEVER)
    to_texts, to_images = functional.cross_entropy(logits, own), functional.cross_entropy(logits[:, :size].T, own)
    facts = {
        "loss": float((to_texts + to_images).detach() / 2),
        "image_to_text": float((logits.argmax(1) == own).float().mean()),
        "text_to_image": float((logits[:, :size].argmax(0) == own).float().mean()),
        "scale": float(scale.detach()),
    }
    return (to_texts + to_images) / 2, facts


def train(model: CLIPModel, tokens: CLIPTokenizer, args: argparse.Namespace) -> MasterWeights:
    """Train the model in place and return its float32 weights."""
    masters = MasterWeights(model, args.lr, ("embedding", "projection"))
    run = Run(args.work, "clip", Schedule(args.steps, args.budget_minutes, 100), (masters,), args.save_every_s)
    pairs = Pairs(tokens, args.batch, run.step * args.batch)
    batches = iter(DataLoader(pairs, batch_size=None, num_workers=args.workers))
    mean: dict[str, float] = {}
    while not run.is_over:
        loss, facts = contrastive_loss(model, *next(batches))
        loss.backward()
        run.advance()
        mean = {k: 0.9 * mean.get(k, v) + 0.1 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    run.save()
    return masters


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoints" / "clip", help="folder written")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work" / "clip", help="folder to resume from")
    parser.add_argument(
        "--tower", type=pathlib.Path, default=HERE / "checkpoints" / "vlm" / "model.safetensors", help="warm start"
    )
    parser.add_argument("--cold", action="store_true", help="start from fresh weights")
    parser.add_argument("--steps", type=int, default=515)
    parser.add_argument("--budget-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--batch", type=int, default=64, help="pairs a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes; 0 draws in this one")
    parser.add_argument("--log-every", type=int, default=25, help="steps")
    parser.add_argument("--save-every-s", type=float, default=180, help="seconds between saves")
    parser.add_argument("--smoke", action="store_true", help="five small steps from fresh weights, nothing resumed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    args = arguments().parse_args(argv)
    if args.smoke:
        args.steps, args.budget_minutes, args.cold = 5, 0, True
        args.batch, args.workers, args.log_every = 4, 0, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="train_clip_"))
    torch.set_num_threads(args.threads)
    tokens = clip_model.train_tokenizer()
    model = clip_model.build(tokens, SEED)
    if not args.cold:
        clip_model.warm_start(model, args.tower)
    masters = train(model, tokens, args)
    save_clip(masters.weights(), model, tokens, args.out)


if __name__ == "__main__":
    main()
