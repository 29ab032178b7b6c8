"""Train the tower and connector of the real model: `python -m reference.train_real`.

The decoder is SmolLM2-135M-Instruct as its wheel has it, frozen. Four stages:

*symbols*: tables of vectors learn, through the decoder, what visual tokens should say (`reference.real.symbols`).
*tower*: the tower learns from dense labels what each cell shows; it starts from the small reference model's.
*say*: tower and connector learn to say it: visual tokens near those of the tables.
*joint*: tower and connector learn through the decoder.

A stopped run goes on where it was. `--smoke` takes a few small steps of each stage.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from reference.drawing import SHAPES
from reference.enquiries import NUMBERS
from reference.pictures import COLOURS, FIGURES, LETTERS, Picture
from reference.real import dialogues
from reference.real.checkpoint import build_checkpoint
from reference.real.decoder import FrozenDecoder, graded
from reference.real.symbols import Symbols, labels
from reference.real.wheel import real_gguf
from reference.training import MasterWeights, Run, Schedule

HERE = pathlib.Path(__file__).parent
_BLANK_WORD = "\n"


def plain_words(decoder: FrozenDecoder, tokens: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Return the decoder's own vectors, float32, of the words that the tables start from."""
    names = {name: f" {name}" for name in (*COLOURS, *SHAPES, *NUMBERS, "shapes")}
    names |= {name: name for name in (*LETTERS, *FIGURES, "0", "1")}
    return {
        name: decoder.table[tokens.encode(word, add_special_tokens=False)].float().mean(0)
        for name, word in names.items()
    }


def shown_tokens(symbols: Symbols, samples: list[dialogues.Sample]) -> torch.Tensor:
    """Return the visual tokens [I, 64, D] that the tables give what samples show."""
    tokens = []
    for shown in (shown for sample in samples for shown in sample.shown):
        if isinstance(shown, Picture):
            tokens.append(symbols(torch.from_numpy(labels(shown))[None])[0])
        else:
            tokens.append(symbols.photographs[shown])
    return torch.stack(tokens)


def train_symbols(
    decoder: FrozenDecoder, tokens: PreTrainedTokenizerFast, args: argparse.Namespace
) -> tuple[Symbols, MasterWeights]:
    """Train the tables through the decoder."""
    symbols = first_symbols(decoder, tokens)
    masters = MasterWeights(symbols, args.symbols_lr, ("",))
    schedule = Schedule(args.symbols_steps, args.symbols_minutes, warmup_steps=20)
    run = Run(args.work, "symbols", schedule, (masters,), args.save_every_s)
    encode, mean = encoder(tokens), dict[str, float]()
    while not run.is_over:
        samples = drawn_samples(run.step, args)
        batch = dialogues.pack(samples, encode, args.sequence_tokens)
        loss, facts = graded(decoder.logits(shown_tokens(symbols, samples), batch), batch)
        loss.backward()
        run.advance()
        mean |= {k: 0.9 * mean.get(k, v) + 0.1 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    run.save()
    return symbols, masters


def first_symbols(decoder: FrozenDecoder, tokens: PreTrainedTokenizerFast) -> Symbols:
    """Return tables of the decoder's own words; a photograph begins as the words of its caption."""
    words = plain_words(decoder, tokens)
    blank = decoder.table[tokens.encode(_BLANK_WORD, add_special_tokens=False)[0]].float()
    symbols = Symbols(words, blank)
    with torch.no_grad():
        for tables, photograph in zip(symbols.photographs, dialogues.photographs.PHOTOGRAPHS, strict=True):
            tables += blank
            said = " ".join((photograph.caption, *(answer for _, answer, _ in photograph.asked)))
            caption = decoder.table[tokens.encode(said, add_special_tokens=False)[: len(tables)]].float()
            tables[: len(caption)] = caption
    return symbols


def drawn_samples(step: int, args: argparse.Namespace) -> list[dialogues.Sample]:
    """Return the samples of one step."""
    return [dialogues.sample(step * args.batch + i, args.questions) for i in range(args.batch)]


def encoder(tokens: PreTrainedTokenizerFast) -> dialogues.Encoder:
    """Return what turns text to token ids."""
    backend = tokens.backend_tokenizer
    return functools.lru_cache(maxsize=50_000)(lambda text: list(backend.encode(text, add_special_tokens=False).ids))


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work" / "real", help="folder to resume from")
    parser.add_argument("--symbols-steps", type=int, default=600)
    parser.add_argument("--symbols-minutes", type=float, default=0, help="wall-clock budget; 0 counts steps")
    parser.add_argument("--symbols-lr", type=float, default=3e-3, help="peak learning rate of the tables")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step, in stages with the decoder")
    parser.add_argument("--questions", type=int, default=12, help="a sequence, at most")
    parser.add_argument("--sequence-tokens", type=int, default=264, help="a sequence, at most")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--log-every", type=int, default=5, help="steps")
    parser.add_argument("--save-every-s", type=float, default=120, help="seconds between saves")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run every stage."""
    args = arguments().parse_args(argv)
    torch.set_num_threads(args.threads)
    whole = args.work / "checkpoint"
    if not whole.exists():
        build_checkpoint(real_gguf(args.work, print), whole)
    model = SmolVLMForConditionalGeneration.from_pretrained(whole, dtype=torch.float32)
    tokens = PreTrainedTokenizerFast.from_pretrained(whole)
    decoder = FrozenDecoder(model, encoder(tokens))
    train_symbols(decoder, tokens, args)


if __name__ == "__main__":
    main()
