"""What demonstrations are worth, sent and fused: `python -m reference.evaluate_demonstrations BUNDLE`.

Held-out questions are asked through the engine alone, behind a few demonstrations of the same task (pictures, questions
and answers of other held-out seeds), behind the texts of these alone, and behind a fused prefix of them. Twice: with
the right answers, and with each answer renamed to another one of the task, which only who reads the demonstrations can
say. Several sets of demonstrations, each asked about questions of its own; intervals are of a bootstrap over questions.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, cast

import numpy as np
from PIL import Image

from bundle.directory import read_manifest
from quant.quality.measures import bootstrap
from reference.real.held_out import held_out as real_held_out
from reference.scenes import held_out
from serving.models.client import LocalClient
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

WAYS = ("none", "sent", "texts alone", "fused")
_MAX_TOKENS = 24
_NUM_SETS = 4


@dataclass(frozen=True)
class Shown:
    """A picture with a question, and what is to be answered.

    Attributes:
        image: A PNG file.
        question: Its text.
        answer: In full.
        is_right: Whether a reply says it.
    """

    image: bytes
    question: str
    answer: str
    is_right: Callable[[str], bool]


@dataclass
class Outcome:
    """What came of one way to show demonstrations.

    Attributes:
        is_right: Of each question.
        rows: Of each question, what its prompt had in the cache, in each layer.
        read_tokens: Of each question, those that were read for it and not taken over.
    """

    is_right: list[bool] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    read_tokens: list[int] = field(default_factory=list)


def of_task(task: str, num: int, *, is_real: bool, renames: bool) -> list[Shown]:
    """Return questions of a task about one picture each.

    Args:
        task: Of `reference.scenes`, or a kind of the real model's questions.
        num: How many.
        is_real: Whether it is the latter.
        renames: Each answer of one word is another one's, the same for all: red blue, blue green, ...
    """
    asked = [each for each in _asked(task, 3 * num, is_real=is_real) if not renames or " " not in each.answer]
    if not renames:
        return asked[:num]
    names = sorted({each.answer for each in asked})
    other = dict(zip(names, names[1:] + names[:1], strict=True))
    return [_renamed(each, other[each.answer]) for each in asked][:num]


def _renamed(shown: Shown, answer: str) -> Shown:
    return Shown(shown.image, shown.question, answer, lambda reply: reply.strip().lower() == answer.lower())


def _asked(task: str, num: int, *, is_real: bool) -> Iterator[Shown]:
    if is_real:
        for question in real_held_out(task, num):
            if len(question.images) == 1:
                yield Shown(_png(question.images[0]), question.enquiry.question, question.answer, question.is_right)
        return
    for example in held_out(task, num):
        if len(example.images) == len(example.turns) == 1:
            yield Shown(_png(example.images[0]), example.question, example.answer, example.is_right)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Asker:
    """Questions to one served model.

    Args:
        client: Started.
        model: Its name.
    """

    def __init__(self, client: LocalClient, model: str) -> None:
        self._client = client
        self._model = model

    async def ask(
        self, messages: Sequence[Message], behind: bytes | None = None, *, fuses: bool = False
    ) -> tuple[str, FinishedEvent]:
        """Return the greedy answer, and how it ended."""
        sampling = SamplingParams(max_tokens=1 if fuses else _MAX_TOKENS, temperature=0.0)
        request = GenerateRequest("r", self._model, tuple(messages), sampling, fuses=fuses, behind=behind)
        events = [event async for event in self._client.generate(request)]
        text = "".join(event.text for event in events[:-1] if not isinstance(event, FinishedEvent))
        return text, cast("FinishedEvent", events[-1])

    async def outcomes(self, demonstrations: Sequence[Shown], asked: Sequence[Shown]) -> dict[str, Outcome]:
        """Return what came of every way to show the same demonstrations before the same questions."""
        sent = [message for each in demonstrations for message in _pair(each, with_image=True)]
        texts = [message for each in demonstrations for message in _pair(each, with_image=False)]
        _, made = await self.ask(sent, fuses=True)
        before = {"none": [], "sent": sent, "texts alone": texts, "fused": list[Message]()}
        found = {way: Outcome() for way in WAYS}
        for each in asked:
            for way, messages in before.items():
                behind = made.fused if way == "fused" else None
                reply, finished = await self.ask([*messages, _question(each, with_image=True)], behind)
                usage = finished.usage
                found[way].is_right.append(each.is_right(reply))
                found[way].rows.append(usage.cache_rows_after)
                found[way].read_tokens.append(usage.prompt_tokens - usage.cached_tokens)
        return found


def _question(shown: Shown, *, with_image: bool) -> Message:
    text = TextPart(shown.question)
    return Message("user", (ImagePart(shown.image), text) if with_image else (text,))


def _pair(shown: Shown, *, with_image: bool) -> tuple[Message, Message]:
    return _question(shown, with_image=with_image), Message("assistant", (TextPart(shown.answer),))


async def measure(
    bundle: pathlib.Path, tasks: Sequence[str], kind: Literal["scenes", "real"], num: int, shots: int, threads: int
) -> dict[str, dict[str, Outcome]]:
    """Return, by task and way, what came of as many questions.

    Args:
        bundle: Of a vision-language model.
        tasks: With " renamed" behind those whose answers are renamed.
        kind: Whose questions they are.
        num: Of questions a task, in sets of demonstrations.
        shots: Demonstrations in a set.
        threads: Per operator.
    """
    settings = EngineSettings(intra_threads=threads, allow_ungated=True, max_sequences=2)
    found: dict[str, dict[str, Outcome]] = {}
    async with LocalClient([bundle], settings) as client:
        asker = Asker(client, read_manifest(bundle).name)
        for task in tasks:
            name, renames = task.removesuffix(" renamed"), task.endswith(" renamed")
            shown = of_task(name, num + _NUM_SETS * shots, is_real=kind == "real", renames=renames)
            if len(shown) < num + _NUM_SETS * shots:
                raise SystemExit(
                    f"{task}: {len(shown)} questions about one picture each (renamed: answered in a word), "
                    f"{num + _NUM_SETS * shots} are wanted; ask for fewer or another task"
                )
            demonstrations, asked = shown[: _NUM_SETS * shots], shown[_NUM_SETS * shots :]
            of_task_found = found[task] = {way: Outcome() for way in WAYS}
            for at in range(_NUM_SETS):
                mine = demonstrations[at * shots : (at + 1) * shots]
                for way, outcome in (await asker.outcomes(mine, asked[at::_NUM_SETS])).items():
                    of_task_found[way].is_right += outcome.is_right
                    of_task_found[way].rows += outcome.rows
                    of_task_found[way].read_tokens += outcome.read_tokens
            print(row(task, of_task_found), flush=True)
    return found


def row(task: str, outcomes: dict[str, Outcome]) -> str:
    """Return a line of a Markdown table: right answers, and fused less sent with its 95 % interval, in points."""
    right = {way: 100.0 * np.array(outcome.is_right, np.float64) for way, outcome in outcomes.items()}
    less = bootstrap(right["fused"] - right["sent"])
    cells = [f"{right[way].mean():.1f} ({np.mean(outcomes[way].rows):.0f} rows)" for way in WAYS]
    cells.append(f"{less.mean:+.1f} ({less.low:+.1f} to {less.high:+.1f})")
    return f"| {task} | {less.n} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table, and write the answers as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--kind", choices=("scenes", "real"), default="scenes", help="whose questions")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="of one word, or 'TASK renamed'")
    parser.add_argument("--questions", type=int, default=100, help="a task")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations before a question")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args(argv)
    print(f"| task, {args.shots} demonstrations | n | {' | '.join(WAYS)} | fused less sent |")
    print("|---" * (len(WAYS) + 3) + "|")
    found = asyncio.run(measure(args.bundle, args.tasks, args.kind, args.questions, args.shots, args.threads))
    if args.json:
        args.json.write_text(
            json.dumps({task: {way: asdict(each) for way, each in ways.items()} for task, ways in found.items()})
        )


if __name__ == "__main__":
    main()
