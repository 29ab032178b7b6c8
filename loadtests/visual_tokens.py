"""What reading fewer tokens of images saves before the first token: `python -m loadtests.visual_tokens BUNDLE`.

    python tests/checkpoints.py CK --preset smolvlm-256m --one-tile && pocketvlm export CK -o fp32
    pocketvlm quantize fp32 -o int8 --weights int8
    python -m loadtests.visual_tokens int8 --allow-ungated --images 4

Every method and share is asked the same, in turns, once about images that nobody saw and once more when their features
are kept and nothing of the prompt is. The encoder stands in the first alone, and shrinks by `resize` alone, which
wants a bundle of `export --smaller-images`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bundle.directory import open_bundle
from bundle.errors import PocketVLMError
from loadtests.images import draw_image
from loadtests.wording import number
from quant.visual_tokens.table import METHODS, RESIZE
from runtime.turns import Quartiles, Turns
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    VisionReduction,
)
from serving.settings import EngineSettings

_QUESTION = "What is in the pictures, and which of them is the odd one out?"
_WHOLE = VisionReduction("uniform", 1.0)


@dataclass(frozen=True)
class Asked:
    """What is asked, and how often.

    Attributes:
        methods: Reducers.
        keeps: Shares below 1; all tokens are measured beside them.
        images: In the one message.
        image_px: Width and height of each.
        turns: That count; one more goes before.
        threads: Inside one operator; 0 means one per physical core.
        seed: Of the images.
        allow_ungated: Measure a variant that failed its quality gate or was never held to one.
    """

    methods: tuple[str, ...] = ("dart",)
    keeps: tuple[float, ...] = (0.5, 0.25)
    images: int = 4
    image_px: int = 512
    turns: int = 5
    threads: int = 0
    seed: int = 0
    allow_ungated: bool = False


@dataclass(frozen=True)
class FirstToken:
    """One request, in milliseconds.

    Attributes:
        first_token_ms: From the request to its first token.
        vision_ms: Of that, waiting for the encoder and the reducer.
        prompt_tokens: That the decoder read.
        processor_ms: Of all threads of this process until the answer ended, at its first token.
    """

    first_token_ms: float
    vision_ms: float
    prompt_tokens: int
    processor_ms: float


@dataclass(frozen=True)
class Line:
    """A method and a share.

    Attributes:
        method: The reducer.
        keep: The share.
        prompt_tokens: That the decoder reads.
        new: Each turn's first token, of images that nobody saw.
        kept: Each turn's first token, of images whose features are kept.
    """

    method: str
    keep: float
    prompt_tokens: int
    new: tuple[FirstToken, ...]
    kept: tuple[FirstToken, ...]


def measure(bundle: Path, asked: Asked) -> list[Line]:
    """Return the first tokens of every reduction, all tokens first.

    Raises:
        PocketVLMError: The bundle cannot be served, or does not do what is asked.
    """
    settings = EngineSettings(max_sequences=1, intra_threads=asked.threads, allow_ungated=asked.allow_ungated)
    pool = PreprocessPool(settings)
    try:
        model = GenerativeModel(open_bundle(bundle, allow_ungated=asked.allow_ungated), settings, pool)
        model.start()
        try:
            return asyncio.run(_measured(model, pool, asked))
        finally:
            model.close()
    finally:
        pool.close()


async def _measured(model: GenerativeModel, pool: PreprocessPool, asked: Asked) -> list[Line]:
    reductions = [_WHOLE, *(VisionReduction(name, keep) for name in asked.methods for keep in asked.keeps)]
    images = tuple(ImagePart(draw_image(asked.seed + at, asked.image_px)) for at in range(asked.images))
    message = Message("user", (*images, TextPart(_QUESTION)))
    new: dict[VisionReduction, list[FirstToken]] = {each: [] for each in reductions}
    kept: dict[VisionReduction, list[FirstToken]] = {each: [] for each in reductions}
    for counts in Turns(warmup=1, repeats=asked.turns).rounds():
        for each in reductions:
            request = GenerateRequest("r", model.card.name, (message,), SamplingParams(max_tokens=1), vision=each)
            pool.features.clear()
            model.clear_prefixes()
            first = await _first_token(model, request)
            model.clear_prefixes()
            second = await _first_token(model, request)
            if counts:
                new[each].append(first)
                kept[each].append(second)
    return [
        Line(each.method, each.keep, new[each][0].prompt_tokens, tuple(new[each]), tuple(kept[each]))
        for each in reductions
    ]


async def _first_token(model: GenerativeModel, request: GenerateRequest) -> FirstToken:
    began_s = time.process_time()
    async with aclosing(model.generate(request)) as events:
        async for event in events:
            if isinstance(event, FinishedEvent):
                times, usage = event.timings, event.usage
    processor_ms = (time.process_time() - began_s) * 1e3
    return FirstToken(times.first_token_s * 1e3, times.vision_s * 1e3, usage.prompt_tokens, processor_ms)


def print_lines(lines: Sequence[Line], console: Console) -> None:
    """Print a table: medians of milliseconds, and ratios to all tokens within each turn.

    On a machine with other work on it the processor's time says more than the clock.
    """
    whole = lines[0]
    new = ("new: first ms", "of it vision", "ratio", "by processor")
    columns = ("method", "keep", "prompt tokens", *new, "kept: first ms", "ratio", "by processor")
    table = Table(*columns)
    for line in lines:
        vision = Quartiles.of([each.vision_ms for each in line.new]).median
        cells = [line.method if line.keep < 1 else "", f"{line.keep:g}", str(line.prompt_tokens)]
        cells += [_median(line.new), number(vision), _ratio(line.new, whole.new), _processor(line.new, whole.new)]
        cells += [_median(line.kept), _ratio(line.kept, whole.kept), _processor(line.kept, whole.kept)]
        table.add_row(*cells)
    console.print(table)


def _median(firsts: Sequence[FirstToken]) -> str:
    return number(Quartiles.of([each.first_token_ms for each in firsts]).median)


def _ratio(firsts: Sequence[FirstToken], whole: Sequence[FirstToken]) -> str:
    times = [[each.first_token_ms for each in side] for side in (firsts, whole)]
    return f"{Quartiles.of_ratios(*times)}"


def _processor(firsts: Sequence[FirstToken], whole: Sequence[FirstToken]) -> str:
    times = [[each.processor_ms for each in side] for side in (firsts, whole)]
    return f"{Quartiles.of_ratios(*times)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = vars(_parser().parse_args(arguments))
    bundle, as_json = options.pop("bundle"), options.pop("as_json")
    try:
        lines = measure(
            bundle, Asked(**{**options, "methods": tuple(options["methods"]), "keeps": tuple(options["keeps"])})
        )
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        print_lines(lines, Console(highlight=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    asked = Asked()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.visual_tokens",
        description="First tokens where fewer tokens of images are read.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle directory")
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, RESIZE), default=asked.methods, help="reducers")
    parser.add_argument("--keeps", type=float, nargs="+", default=asked.keeps, help="shares, above 0 and at most 1")
    parser.add_argument("--images", type=int, default=asked.images, help="in the one message")
    parser.add_argument("--image-px", type=int, default=asked.image_px, help="width and height of each, pixels")
    parser.add_argument("--turns", type=int, default=asked.turns, help="rounds that count, at least 3")
    parser.add_argument("--threads", type=int, default=asked.threads, help="0: one per physical core")
    parser.add_argument("--seed", type=int, default=asked.seed, help="of the images")
    parser.add_argument("--allow-ungated", action="store_true", help="measure a variant that failed its gate")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print all times as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
