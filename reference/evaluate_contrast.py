"""What contrastive decoding does to a model's answers: `python -m reference.evaluate_contrast BUNDLE`.

Held-out questions are asked through the engine as they are, and once for each contrast. Beside the right answers stands
how many are worded otherwise than the plain one, and how far accuracy is from it, with a bootstrap's 95 % interval.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
from collections.abc import Sequence

import numpy as np

from bundle.directory import read_manifest
from quant.quality.measures import bootstrap
from reference.evaluate_demonstrations import Shown, of_task
from reference.scenes import TASKS
from serving.models.client import LocalClient
from serving.protocol import (
    M3ID,
    VCD,
    Contrast,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    TokenEvent,
)
from serving.settings import EngineSettings

WAYS: dict[str, Contrast | None] = {
    "plain": None,
    "vcd, alpha 1": VCD(),
    "vcd, alpha 2, no cut": VCD(alpha=2.0, beta=0.0),
    "m3id": M3ID(),
    "m3id, always": M3ID(confidence=1.0),
}
_MAX_TOKENS = 24


async def reply(client: LocalClient, model: str, shown: Shown, how: Contrast | None) -> str:
    """Return the greedy answer to a question."""
    message = Message("user", (ImagePart(shown.image), TextPart(shown.question)))
    sampling = SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0, contrast=how)
    events = client.generate(GenerateRequest("r", model, (message,), sampling))
    return "".join([event.text async for event in events if isinstance(event, TokenEvent)])


async def measure(
    bundle: pathlib.Path, tasks: Sequence[str], num: int, threads: int
) -> dict[str, list[tuple[bool, str]]]:
    """Return, by way, whether each answer is right, and the answer.

    Args:
        bundle: Of a vision-language model.
        tasks: Of `reference.scenes`.
        num: Of questions a task.
        threads: Per operator.
    """
    found: dict[str, list[tuple[bool, str]]] = {way: [] for way in WAYS}
    async with LocalClient([bundle], EngineSettings(intra_threads=threads, allow_ungated=True)) as client:
        model = read_manifest(bundle).name
        for task in tasks:
            for shown in of_task(task, num, is_real=False, renames=False):
                for way, how in WAYS.items():
                    said = await reply(client, model, shown, how)
                    found[way].append((shown.is_right(said), said))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--questions", type=int, default=20, help="a task")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    found = asyncio.run(measure(args.bundle, args.tasks, args.questions, args.threads))
    print("| contrast | n | right, % | less plain | worded otherwise |\n|---|---|---|---|---|")
    plain = found["plain"]
    for way, answers in found.items():
        right = 100.0 * np.array([is_right for is_right, _ in answers], np.float64)
        less = bootstrap(right - 100.0 * np.array([is_right for is_right, _ in plain], np.float64))
        others = sum(said != of_plain for (_, said), (_, of_plain) in zip(answers, plain, strict=True))
        told = f"{less.mean:+.1f} ({less.low:+.1f} to {less.high:+.1f})"
        print(f"| {way} | {len(answers)} | {right.mean():.1f} | {told} | {others} |")


if __name__ == "__main__":
    main()
