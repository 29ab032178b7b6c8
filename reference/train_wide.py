"""Train the small vision-language model on wider pictures and wordings: `python -m reference.train_wide`.

The shipped `vlm` learnt `scenes`: images of one size, in few wordings. This trains the same architecture on `pictures`
and `enquiries`: 64 to 512 pixels, grounds, fonts, longer words, equal shapes, both orders of text and image, greetings
and questions that no picture answers, and the photographs of `photographs`.

*tower* is that stage of `reference.train_real`, from the shipped tower. *language*: decoder, connector and tower learn
from answers, from the shipped decoder. A stopped run goes on where it was. `--smoke` takes two small steps of each
stage. On a GPU, with 16 cores that draw:

    python -m reference.train_wide --device cuda --workers 12 --images 256 --batch 64 --tower-minutes 10 \
        --language-minutes 40
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from reference import dialogues, tokenizer, vlm_model
from reference.real.tower import Labels, Tower
from reference.shipping import save_vlm
from reference.train_real import ADAMW_NAMES, EVERY_NAME, Looked, Progress, encoder, recall, train_tower
from reference.train_vlm import SEED, Decoder
from reference.training import MasterWeights, Run, Schedule, attention_of, graded

HERE = pathlib.Path(__file__).parent
STAGES = ("tower", "language")
_CORPUS_MIX = dataclasses.replace(dialogues.SMALL_MIX, pictures=dialogues.KIND_WEIGHTS, kinds=dialogues.KIND_WEIGHTS)
"""Of what the tokenizer is learnt from: words in capitals, and figures, need no tokens of their own."""
_CORPUS_SAMPLES = 10_000
VOCABULARY_TOKENS = 1024
_READING_QUESTIONS = 3  # a sequence, at most
_READING_SEEDS, _PLACES_SEEDS = 1 << 36, 1 << 37  # where these samples begin
_STILL_TOWER_SHARE = 0.06  # of the stage; the tower's gradients are noise until the decoder reads it
_TOWER_LR_SHARE = 0.3
_DENSE_SHARE = 0.3  # of the loss
_PLACE_SHARE = 0.1  # of the loss
_SAID_SHARE = 0.4  # of the dense loss: this decoder learns to look for itself


def sentences() -> Iterator[str]:
    """Yield what the tokenizer is learnt from."""
    for seed in range(_CORPUS_SAMPLES):
        drawn = dialogues.sample(seed, 8, _CORPUS_MIX)
        for enquiry in (*drawn.before, *drawn.asked):
            yield f"User:{enquiry.question}"
            yield f"User: {enquiry.question}\nAssistant: {enquiry.answer}\n"


@torch.no_grad()
def start_from(folder: pathlib.Path, model: SmolVLMForConditionalGeneration, tokens: PreTrainedTokenizerFast) -> None:
    """Give a model the weights of a checkpoint of the same sizes, in place.

    A token that the checkpoint's tokenizer has not begins as the mean of those that it writes the same text with.

    Args:
        folder: The checkpoint.
        model: Of another vocabulary.
        tokens: That vocabulary's.
    """
    source = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    known = AutoTokenizer.from_pretrained(folder)
    pieces = [_pieces(name, number, tokens, known) for name, number in sorted(tokens.get_vocab().items(), key=_second)]
    state = source.state_dict()
    for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.stack([state[name][rows].mean(0) for rows in pieces])
    model.load_state_dict(state)


def _second(pair: tuple[str, int]) -> int:
    return pair[1]


def _pieces(name: str, number: int, tokens: PreTrainedTokenizerFast, known: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids by which another tokenizer writes one token."""
    vocabulary = known.get_vocab()
    if name in vocabulary:
        return [vocabulary[name]]
    return list(known.encode(tokens.decode([number]), add_special_tokens=False))


def train_language(
    model: SmolVLMForConditionalGeneration, tower: Tower, tokens: PreTrainedTokenizerFast, args: argparse.Namespace
) -> None:
    """Train the decoder in place, and after a while the tower with it; write the checkpoint."""
    masters = MasterWeights(Decoder(model), args.lr, ("embed_tokens", "lm_head"))
    tower_masters = MasterWeights(tower, args.lr * _TOWER_LR_SHARE, ADAMW_NAMES)
    schedule = Schedule(args.language_steps, args.language_minutes, warmup_steps=100)
    places = vlm_model.make_place_head().to(model.device)
    place_masters = MasterWeights(places, args.lr, EVERY_NAME)
    run = Run(args.work, "language", schedule, (masters, tower_masters, place_masters), args.save_every_s)
    progress, encode = Progress(run, args.log_every), encoder(tokens)
    device = torch.device(args.device)
    batches = _batches(encode, run.step, args)
    while not run.is_over:
        drawn, seen, batch = next(batches)
        pixels, labels = drawn.to(device), seen.to(device)
        is_still = run.progress < _STILL_TOWER_SHARE
        with torch.set_grad_enabled(not is_still):
            sight = tower.sight(pixels)
        features = tower.features(sight)
        loss, facts = graded(_logits(model, features, batch), batch)
        dense, _ = tower.loss(features, labels, _SAID_SHARE)
        place = vlm_model.place_loss(places, features)
        (loss + _DENSE_SHARE * dense + _PLACE_SHARE * place).backward()
        progress.advance({"dense": dense.detach(), "place": place.detach(), **facts})
    run.save()
    weights = {name if name.startswith("lm_head") else f"model.{name}": w for name, w in masters.weights().items()}
    weights |= {f"model.{name}": w for name, w in tower_masters.weights().items() if not name.startswith("head.")}
    save_vlm({name: weight.cpu() for name, weight in weights.items()}, model, tokens, args.out)


def _batches(
    encode: dialogues.Encoder, step: int, args: argparse.Namespace
) -> Iterator[tuple[torch.Tensor, Labels, dialogues.Batch]]:
    """Yield batches from a step on, by turns: conversations, twice as many short ones about words and digits, sides."""
    streams = (
        (dialogues.SMALL_MIX, args.batch, args.questions, args.sequence_tokens, 0),
        (dialogues.READING_MIX, 2 * args.batch, _READING_QUESTIONS, args.sequence_tokens // 2, _READING_SEEDS),
        (dialogues.PLACES_MIX, args.batch, args.questions, args.sequence_tokens, _PLACES_SEEDS),
    )
    loaders = []
    for mix, batch, questions, tokens, first in streams:
        packed = functools.partial(dialogues.pack, template=dialogues.SMALL, encode=encode, max_tokens=tokens)
        stream = Looked(batch, questions, first + step * batch, packed, mix)
        loaders.append(iter(DataLoader(stream, batch_size=None, num_workers=args.workers)))
    for loader in itertools.cycle(loaders):
        yield next(loader)


def _logits(model: SmolVLMForConditionalGeneration, features: torch.Tensor, batch: dialogues.Batch) -> torch.Tensor:
    """Return float32 logits [N, V] of the rows that are learnt, from visual tokens [I, 64, D]."""
    arrays = (batch.ids, batch.positions, batch.segments, batch.rows)
    columns = (torch.from_numpy(column).to(features.device) for column in arrays)
    return vlm_model.answer_logits(model, features, *columns)


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="run only these")
    parser.add_argument("--start", type=pathlib.Path, default=HERE / "checkpoints" / "vlm", help="checkpoint")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / ".work" / "wide" / "vlm", help="folder written")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work" / "wide", help="folder to resume from")
    for stage, steps in (("tower", 5000), ("language", 8000)):
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
        parser.add_argument(f"--{stage}-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--images", type=int, default=32, help="a step of stage tower")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step of stage language")
    parser.add_argument("--questions", type=int, default=10, help="a sequence, at most")
    parser.add_argument("--sequence-tokens", type=int, default=320, help="a sequence, at most")
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures; 0 draws in this one")
    parser.add_argument("--log-every", type=int, default=25, help="steps")
    parser.add_argument("--save-every-s", type=float, default=180, help="seconds between saves")
    parser.add_argument("--smoke", action="store_true", help="two small steps a stage, nothing resumed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run both stages."""
    args = arguments().parse_args(argv)
    if args.smoke:
        args.tower_steps = args.language_steps = 2
        args.images, args.batch, args.questions, args.log_every = 2, 2, 3, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="train_wide_"))
    torch.set_num_threads(args.threads)
    tokens = tokenizer.train(sentences(), VOCABULARY_TOKENS)
    model = vlm_model.build(tokens.get_vocab(), SEED)
    start_from(args.start, model, tokens)
    model.to(torch.device(args.device))
    model.set_attn_implementation(attention_of(model.device))
    tower = Tower(model, reads_tokens=True).to(model.device)
    if "tower" in args.stages:
        train_tower(tower, args, _SAID_SHARE, vlm_model.make_place_head().to(model.device))
    if "language" in args.stages:
        recall(args.work / "tower.pt", tower)
        train_language(model, tower, tokens, args)


if __name__ == "__main__":
    main()
