"""Train the tower and connector of the real model: `python -m reference.train_real`.

The decoder is SmolLM2-135M-Instruct as its wheel has it, frozen: only what it is shown is learnt. Four stages:

*symbols*: tables of vectors learn, through the decoder, what visual tokens should say (`reference.real.symbols`).
*tower*: the tower learns from labels what each cell shows; it starts from the small reference model's.
*say*: tower and connector learn to say it: visual tokens near those of the tables.
*joint*: tower and connector learn through the decoder.

A stopped run goes on where it was. The first two stages need nothing of each other and may run side by side
(`--stages symbols`, `--stages tower`). `--device cuda` trains on a GPU, `--seconds` shares a time among the stages,
`--smoke` takes two small steps of each.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib
import random
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from reference import dialogues
from reference.drawing_batches import first_seed
from reference.layout import IMAGE_PX, PATCH_PX
from reference.photographs import PHOTOGRAPHS
from reference.real.checkpoint import build_checkpoint
from reference.real.decoder import FrozenDecoder
from reference.real.symbols import ROLES, Symbols
from reference.real.tower import Labels, Sights, Tower, pixels_of, said_loss
from reference.real.wheel import real_gguf
from reference.shipping import save_vision
from reference.training import MasterWeights, Run, Schedule, attention_of, graded
from reference.vlm_model import place_loss

STAGES = {"symbols": 0.25, "tower": 0.25, "say": 0.05, "joint": 0.45}
"""With the share of the time that `--seconds` gives each."""
TOWER = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": IMAGE_PX,
    "patch_size": PATCH_PX,
}
"""Sizes of what is trained: 2.8 million weights, and 0.4 million of the connector."""
HERE = pathlib.Path(__file__).parent
_SEED = 20261126
_BLANK_WORD = "\n"
ADAMW_NAMES, EVERY_NAME = ("embed", "head"), ("",)
_JOINT_SEEDS = 1 << 35  # where the samples of stage "joint" begin
_CONNECTING_BATCHES, _CONNECTING_IMAGES = 12, 32  # for the connector's first matrix
_SAID_SHARE, _DENSE_SHARE = 0.3, 0.2  # of the loss, beside what a stage is for


Packed = Callable[[list[dialogues.Sample]], dialogues.Batch]


class Looked(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [I, 128, 128, 3] uint8, labels, questions) of conversations about images."""

    def __init__(
        self, batch: int, num_questions: int, start: int, packed: Packed, mix: dialogues.Mix = dialogues.REAL_MIX
    ) -> None:
        """Begin at training seed `start`, each worker in a range of its own."""
        self._batch = batch
        self._num_questions = num_questions
        self._start = start
        self._packed = packed
        self._mix = mix

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Labels, dialogues.Batch]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            samples = [dialogues.sample(seed + i, self._num_questions, self._mix) for i in range(self._batch)]
            pixels = [pixels_of(shown, random.Random(s.seed)) for s in samples for shown in s.shown]
            seed += self._batch
            if pixels:
                yield torch.from_numpy(np.stack(pixels)), labels_of(samples), self._packed(samples)


def labels_of(samples: list[dialogues.Sample]) -> Labels:
    """Return what is to be said about all that samples show."""
    return Labels.of([shown for sample in samples for shown in sample.shown])


def train_symbols(
    symbols: Symbols, decoder: FrozenDecoder, encode: dialogues.Encoder, args: argparse.Namespace
) -> None:
    """Train the tables in place, through the decoder."""
    masters = MasterWeights(symbols, args.symbols_lr, EVERY_NAME)
    schedule = Schedule(args.symbols_steps, args.symbols_minutes, warmup_steps=20)
    run = Run(args.work, "symbols", schedule, (masters,), args.save_every_s)
    progress = Progress(run, args.log_every)
    batches = conversations(run.step * args.batch, encode, args)
    while not run.is_over:
        _, labels, batch = next(batches)
        loss, facts = graded(decoder.logits(symbols(*labels.said), batch), batch)
        loss.backward()
        progress.advance(facts)
    run.save()


def train_tower(
    tower: Tower, args: argparse.Namespace, said_share: float = 1.0, places: torch.nn.Linear | None = None
) -> None:
    """Train the tower in place, on labels.

    Args:
        tower: Of any sizes.
        args: The command line.
        said_share: As in `Tower.loss`.
        places: Reads from visual tokens where each stands, and is trained beside a tower whose head reads these too: a
            decoder that knows the tokens goes on finding places in them.
    """
    masters = [MasterWeights(tower, args.lr, ADAMW_NAMES)]
    if places is not None:
        masters.append(MasterWeights(places, args.lr, EVERY_NAME))
    run = Run(args.work, "tower", Schedule(args.tower_steps, args.tower_minutes), tuple(masters), args.save_every_s)
    progress = Progress(run, args.log_every)
    batches = sights(run, args)
    while not run.is_over:
        pixels, labels = next(batches)
        seen = tower.sight(pixels) if places is None else tower.features(tower.sight(pixels))
        loss, facts = tower.loss(seen, labels, said_share)
        if places is not None:
            loss = loss + place_loss(places, seen)
        loss.backward()
        progress.advance(facts)
    run.save()


def train_to_say(tower: Tower, symbols: Symbols, args: argparse.Namespace) -> None:
    """Train tower and connector in place, to give the tables' visual tokens."""
    connect(tower, symbols, args)
    masters = MasterWeights(tower, args.lr, ADAMW_NAMES)
    run = Run(args.work, "say", Schedule(args.say_steps, args.say_minutes), (masters,), args.save_every_s)
    progress = Progress(run, args.log_every)
    batches = sights(run, args)
    while not run.is_over:
        pixels, labels = next(batches)
        sight = tower.sight(pixels)
        with torch.no_grad():
            wanted = symbols(*labels.said)
        said = said_loss(tower.features(sight), wanted)
        dense, facts = tower.loss(sight, labels)
        (said + _DENSE_SHARE * dense).backward()
        progress.advance({"said": said.detach(), **facts})
    run.save()


@torch.no_grad()
def connect(tower: Tower, symbols: Symbols, args: argparse.Namespace) -> None:
    """Set the connector to the regression of the tables' visual tokens on what the tower sees."""
    device = torch.device(args.device)
    batches = iter(Sights(_CONNECTING_IMAGES, 0))
    seen = [(pixels.to(device), labels.to(device)) for pixels, labels in itertools.islice(batches, _CONNECTING_BATCHES)]
    sight = torch.cat([tower.sight(pixels) for pixels, _ in seen])
    tower.set_connector(sight, torch.cat([symbols(*labels.said) for _, labels in seen]))


def train_jointly(
    tower: Tower, symbols: Symbols, decoder: FrozenDecoder, encode: dialogues.Encoder, args: argparse.Namespace
) -> None:
    """Train tower and connector in place, through the decoder."""
    masters = MasterWeights(tower, args.joint_lr, ADAMW_NAMES)
    schedule = Schedule(args.joint_steps, args.joint_minutes)
    run = Run(args.work, "joint", schedule, (masters,), args.save_every_s)
    progress = Progress(run, args.log_every)
    batches = conversations(_JOINT_SEEDS + run.step * args.batch, encode, args)
    while not run.is_over:
        pixels, labels, batch = next(batches)
        sight = tower.sight(pixels)
        features = tower.features(sight)
        loss, facts = graded(decoder.logits(features, batch), batch)
        with torch.no_grad():
            wanted = symbols(*labels.said)
        said, (dense, _) = said_loss(features, wanted), tower.loss(sight, labels)
        (loss + _SAID_SHARE * (1 - run.progress) * said + _DENSE_SHARE * dense).backward()
        progress.advance({"said": said.detach(), "dense": dense.detach(), **facts})
    run.save()
    recall(args.work / "joint.pt", tower)


class Progress:
    """Takes the steps of a run and prints how it goes."""

    def __init__(self, run: Run, log_every: int) -> None:
        """Print a line each `log_every` steps of `run`."""
        self._run = run
        self._log_every = log_every
        self._mean: dict[str, torch.Tensor] = {}

    def advance(self, facts: dict[str, torch.Tensor]) -> None:
        """Apply the gradients of one batch, of which these are the facts."""
        self._run.advance()
        self._mean |= {k: 0.9 * self._mean.get(k, v) + 0.1 * v for k, v in facts.items()}
        if self._run.step % self._log_every == 0:
            print(self._run.line(self._mean), flush=True)


def recall(saved: pathlib.Path, module: torch.nn.Module) -> None:
    """Give a module the weights of a stage's last save, float32: while it trains it computes in bfloat16.

    Raises:
        FileNotFoundError: The stage has not been run.
    """
    if not saved.exists():
        raise FileNotFoundError(f"{saved} does not exist; run stage {saved.stem} first")
    module.float().load_state_dict(torch.load(saved, weights_only=True, map_location="cpu")["states"][0]["masters"])


def sights(run: Run, args: argparse.Namespace) -> Iterator[tuple[torch.Tensor, Labels]]:
    """Return the batches of images from where a run is."""
    device = torch.device(args.device)
    loader = DataLoader(Sights(args.images, run.step * args.images), batch_size=None, num_workers=args.workers)
    return ((pixels.to(device), labels.to(device)) for pixels, labels in loader)


def conversations(
    start: int, encode: dialogues.Encoder, args: argparse.Namespace
) -> Iterator[tuple[torch.Tensor, Labels, dialogues.Batch]]:
    """Return the batches of `Looked` from a seed on."""
    device = torch.device(args.device)
    packed = functools.partial(dialogues.pack, template=dialogues.REAL, encode=encode, max_tokens=args.sequence_tokens)
    loader = DataLoader(Looked(args.batch, args.questions, start, packed), batch_size=None, num_workers=args.workers)
    return ((pixels.to(device), labels.to(device), batch) for pixels, labels, batch in loader)


def fresh_tower(model: SmolVLMForConditionalGeneration) -> None:
    """Give a whole model a tower of `TOWER`'s sizes and a connector, both untrained, in place."""
    whole: SmolVLMConfig = model.config
    whole.vision_config = type(whole.vision_config)(**TOWER)
    model.model.vision_model = type(model.model.vision_model)(whole.vision_config)
    model.model.connector = type(model.model.connector)(whole)


def first_symbols(table: torch.Tensor, encode: dialogues.Encoder) -> Symbols:
    """Return tables of the decoder's own words; a photograph begins as what is said about it.

    Args:
        table: [V, D] the decoder's vectors of its tokens.
        encode: From text to token ids.
    """
    names = {name for role in ROLES.values() for name in role if name}
    words = {name: table[encode(name if len(name) == 1 else f" {name}")].float().mean(0) for name in names}
    blank = table[encode(_BLANK_WORD)[0]].float()
    symbols = Symbols(words, blank)
    with torch.no_grad():
        for tokens, photograph in zip(symbols.photographs, PHOTOGRAPHS, strict=True):
            said = " ".join((photograph.caption, *(answer for _, answer, _ in photograph.asked)))
            vectors = table[encode(said)[: len(tokens)]].float()
            tokens[:] = blank
            tokens[: len(vectors)] = vectors
    return symbols


def encoder(tokens: PreTrainedTokenizerFast) -> dialogues.Encoder:
    """Return what turns text to token ids."""
    backend = tokens.backend_tokenizer
    return functools.lru_cache(maxsize=50_000)(lambda text: list(backend.encode(text, add_special_tokens=False).ids))


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoints" / "vlm-real", help="folder written")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work" / "real", help="folder to resume from")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="run only these")
    for stage, steps in (("symbols", 1500), ("tower", 2500), ("say", 1000), ("joint", 1500)):
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
        parser.add_argument(f"--{stage}-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--symbols-lr", type=float, default=5e-3, help="peak learning rate of the tables")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate of stages tower and say")
    parser.add_argument("--joint-lr", type=float, default=4e-4, help="peak learning rate of stage joint")
    parser.add_argument("--images", type=int, default=32, help="a step, in stages without the decoder")
    parser.add_argument("--batch", type=int, default=2, help="sequences a step, in stages with the decoder")
    parser.add_argument("--questions", type=int, default=12, help="a sequence, at most")
    parser.add_argument("--sequence-tokens", type=int, default=264, help="a sequence, at most")
    parser.add_argument("--seconds", type=float, default=0, help="shared among the stages; 0: as each stage says")
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures; 0 draws in this one")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--save-every-s", type=float, default=120, help="seconds between saves")
    parser.add_argument("--smoke", action="store_true", help="two small steps a stage, nothing resumed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the stages."""
    args = arguments().parse_args(argv)
    whole, gguf = args.work / "checkpoint", real_gguf(args.work, print)
    if args.smoke:
        args.symbols_steps = args.tower_steps = args.say_steps = args.joint_steps = 2
        args.images, args.batch, args.questions, args.log_every = 2, 1, 2, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="train_real_"))
    if args.seconds:
        share_time(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(_SEED)
    if not whole.exists():
        build_checkpoint(gguf, whole)
    model = SmolVLMForConditionalGeneration.from_pretrained(whole, dtype=torch.float32)
    fresh_tower(model)
    model.to(torch.device(args.device))
    train(model, encoder(PreTrainedTokenizerFast.from_pretrained(whole)), args)


def share_time(args: argparse.Namespace) -> None:
    """Set the minutes of the stages asked for, so that they take `args.seconds` together."""
    whole = sum(STAGES[stage] for stage in args.stages)
    for stage in args.stages:
        setattr(args, f"{stage}_minutes", args.seconds / 60 * STAGES[stage] / whole)


def train(model: SmolVLMForConditionalGeneration, encode: dialogues.Encoder, args: argparse.Namespace) -> None:
    """Run the stages asked for; write tower and connector after stage say, and again after joint."""
    model.set_attn_implementation(attention_of(model.device))
    torch.manual_seed(_SEED)
    tower = Tower(model).to(model.device)
    symbols = first_symbols(model.get_input_embeddings().weight, encode).to(model.device)
    if "tower" in args.stages:
        train_tower(tower, args)
    decoder = FrozenDecoder(model, encode) if {"symbols", "joint"} & set(args.stages) else None
    if decoder and "symbols" in args.stages:
        train_symbols(symbols, decoder, encode, args)
    if "say" in args.stages:
        recall(args.work / "tower.pt", tower)
        recall(args.work / "symbols.pt", symbols)
        train_to_say(tower, symbols, args)
        recall(args.work / "say.pt", tower)
        save_vision(tower.shipped(), model.config, args.out)
    if decoder and "joint" in args.stages:
        recall(args.work / "symbols.pt", symbols)
        recall(args.work / "say.pt", tower)
        train_jointly(tower, symbols, decoder, encode, args)
        save_vision(tower.shipped(), model.config, args.out)


if __name__ == "__main__":
    main()
