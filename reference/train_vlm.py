"""Train the vision-language model: `python -m reference.train_vlm`.

Two stages. *tower*: the vision tower and connector learn from dense labels what each patch shows; *language*: the
decoder learns to answer questions, at first with the tower held still. Answers alone teach a tower this small too
slowly: in a trial colour was still at 40 % after 36,000 images.

A stopped run goes on where it was. `--smoke` takes five steps of each stage.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import tempfile
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from reference import layout, packing, tokenizer, vlm_model
from reference.batches import Batch
from reference.drawing_batches import drawn, first_seed
from reference.shipping import save_vlm
from reference.training import MasterWeights, Run, Schedule, graded

SEED = 20261120
HERE = pathlib.Path(__file__).parent
_LANGUAGE_SEEDS = 1 << 36  # where the language stage's seeds begin
_STILL_TOWER_SHARE = 0.25  # of the language stage; the tower's gradients are noise until the decoder reads it
_TOWER_LR_SHARE = 0.3
_DENSE_LOSS_SHARE = 0.3
_FEATURE_RMS = 1.0
_COMPARE_BATCH_SHARE = 0.12  # of batches, each of half as many samples with two or three images


class DenseScenes(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [B, 128, 128, 3] uint8, labels [B, 4, 16, 16] uint8)."""

    def __init__(self, batch: int, start: int) -> None:
        """Begin at training seed `start`, each worker in a range of its own."""
        self._batch = batch
        self._start = start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            yield drawn([dense_scene(seed + i) for i in range(self._batch)])
            seed += self._batch


class Conversations(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [I, 128, 128, 3], labels [I, 4, 16, 16], `Batch`)."""

    def __init__(self, tokens: Tokenizer, batch: int, num_questions: int, start: int) -> None:
        """Begin at training seed `_LANGUAGE_SEEDS + start`."""
        self._packer = packing.Packer(tokens)
        self._batch = batch
        self._num_questions = num_questions
        self._start = _LANGUAGE_SEEDS + start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, Batch]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            yield self._from(seed)
            seed += self._batch

    def numbered(self, number: int) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        """Return the batch that comes `number` batches after the first."""
        return self._from(self._start + number * self._batch)

    def _from(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        is_compare = random.Random(seed).random() < _COMPARE_BATCH_SHARE
        themes = {"compare": 1} if is_compare else packing.THEMES
        seeds = range(seed, seed + (self._batch // 2 if is_compare else self._batch))
        samples = [packing.sample(random.Random(s), self._num_questions, themes) for s in seeds]
        return (*drawn([scene for s in samples for scene in s.scenes]), self._packer.pack(samples))


def dense_scene(seed: int) -> layout.Scene:
    """Return a crowded scene: every kind of thing, more of each than questions need."""
    rng = random.Random(seed)
    draw = rng.random()
    if draw < 0.35:
        return layout.sample_scene(rng, rng.randint(1, 6))
    if draw < 0.7:
        texts = tuple(layout.random_text(rng) for _ in range(rng.randint(1, 4)))
        return layout.sample_scene(rng, rng.randint(0, 3), texts=texts)
    return layout.sample_scene(rng, rng.randint(0, 2), num_digits=rng.randint(1, 2))


class Tower(nn.Module):
    """The tower, the connector and their dense head: what stage *tower* trains."""

    def __init__(self, model: nn.Module) -> None:
        """Borrow the parts from a whole model."""
        super().__init__()
        self.vision_model = model.model.vision_model
        self.connector = model.model.connector
        self.head = vlm_model.DenseHead()

    @torch.no_grad()
    def normalise(self, features: torch.Tensor) -> None:
        """Scale the connector so that visual tokens are of size `_FEATURE_RMS`, and the head to undo it."""
        factor = _FEATURE_RMS / float(features.float().square().mean().sqrt())
        self.connector.modality_projection.proj.weight.mul_(factor)
        self.head.dense_head.weight.div_(factor)
        self.head.place_head.weight.div_(factor)


class Decoder(nn.Module):
    """The language model: what stage *language* trains from its first step."""

    def __init__(self, model: nn.Module) -> None:
        """Borrow the parts from a whole model."""
        super().__init__()
        self.text_model = model.model.text_model
        self.lm_head = model.lm_head


def train_tower(model: SmolVLMForConditionalGeneration, tower: Tower, args: argparse.Namespace) -> None:
    """Train the tower in place on dense labels."""
    masters = MasterWeights(tower, args.lr, ("embed", "dense_head", "place_head"))
    run = Run(args.work, "tower", Schedule(args.tower_steps, args.tower_minutes), (masters,), args.save_every_s)
    scenes = DenseScenes(args.batch, run.step * args.batch)
    batches = iter(DataLoader(scenes, batch_size=None, num_workers=args.workers))
    mean: dict[str, float] = {}
    while not run.is_over:
        pixels, labels = next(batches)
        loss, facts = tower.head.loss(vlm_model.image_features(model, pixels), labels)
        loss.backward()
        run.advance()
        mean = {k: 0.9 * mean.get(k, v) + 0.1 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    run.save()


def train_language(
    model: SmolVLMForConditionalGeneration, tower: Tower, tokens: PreTrainedTokenizerFast, args: argparse.Namespace
) -> None:
    """Train the decoder in place, and after a while the tower with it; write the checkpoint."""
    decoder = Decoder(model)
    decoder_masters = MasterWeights(decoder, args.lr, ("embed_tokens", "lm_head"))
    tower_masters = MasterWeights(tower, args.lr * _TOWER_LR_SHARE, ("embed", "dense_head", "place_head"))
    schedule = Schedule(args.language_steps, args.language_minutes, warmup_steps=100)
    run = Run(args.work, "language", schedule, (decoder_masters, tower_masters), args.save_every_s)
    stream = Conversations(tokens.backend_tokenizer, args.batch, args.questions, run.step * args.batch)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=args.workers))
    mean: dict[str, float | torch.Tensor] = {}
    while not (run.is_over or args.ship_only):
        pixels, labels, batch = next(batches)
        is_still = run.progress < _STILL_TOWER_SHARE
        with torch.set_grad_enabled(not is_still):
            features = vlm_model.image_features(model, pixels)
        loss, facts = answer_loss(model, features, batch)
        if not is_still:
            dense, seen = tower.head.loss(features, labels)
            loss = loss + _DENSE_LOSS_SHARE * dense
            facts |= {"dense": seen["dense"], "place_loss": seen["place_loss"]}
        loss.backward()
        run.advance()
        mean |= {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    if not args.ship_only:
        run.save()
    save_vlm({**decoder_names(decoder_masters), **tower_names(tower_masters)}, model, tokens, args.out)


def answer_loss(
    model: SmolVLMForConditionalGeneration, features: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the mean cross-entropy of answers, and per task the share of answers with every token right.

    Args:
        model: Computes in the arithmetic of its weights.
        features: [I, 64, D].
        batch: What is asked about the images.
    """
    ids, positions, segments, rows = (
        torch.from_numpy(a) for a in (batch.ids, batch.positions, batch.segments, batch.rows)
    )
    return graded(vlm_model.answer_logits(model, features, ids, positions, segments, rows), batch)


def decoder_names(masters: MasterWeights) -> dict[str, torch.Tensor]:
    """Return the decoder's weights by the names they have in the whole model."""
    return {k if k.startswith("lm_head") else f"model.{k}": v for k, v in masters.weights().items()}


def tower_names(masters: MasterWeights) -> dict[str, torch.Tensor]:
    """Return the tower's weights by the names they have in the whole model, without the dense head."""
    return {f"model.{k}": v for k, v in masters.weights().items() if not k.startswith("head.")}


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoints" / "vlm", help="folder written")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work" / "vlm", help="folder to resume from")
    parser.add_argument("--tower-steps", type=int, default=3500)
    parser.add_argument("--tower-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--language-steps", type=int, default=3500)
    parser.add_argument("--language-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--questions", type=int, default=8, help="conversations an image")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes; 0 draws in this one")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--save-every-s", type=float, default=180, help="seconds between saves")
    parser.add_argument("--ship-only", action="store_true", help="write the checkpoint of the last save and end")
    parser.add_argument("--smoke", action="store_true", help="five small steps a stage, nothing resumed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run both stages."""
    args = arguments().parse_args(argv)
    if args.smoke:
        args.tower_steps = args.language_steps = 5
        args.tower_minutes = args.language_minutes = 0
        args.batch, args.questions, args.workers, args.log_every = 2, 3, 0, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="train_vlm_"))
    torch.set_num_threads(args.threads)
    tokens = tokenizer.train()
    model = vlm_model.build(tokens.get_vocab(), SEED)
    tower = Tower(model)
    train_tower(model, tower, args)
    with torch.no_grad():
        tower.normalise(vlm_model.image_features(model, next(iter(DenseScenes(32, 0)))[0]))
    train_language(model, tower, tokens, args)


if __name__ == "__main__":
    main()
