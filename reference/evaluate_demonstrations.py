"""What demonstrations are worth, sent and kept: `python -m reference.evaluate_demonstrations BUNDLE`.

Held-out questions are asked through the engine alone, behind a few demonstrations of the same task (pictures, questions
and answers of other held-out seeds), behind the texts of these alone, and behind a fused prefix of them; of a bundle
exported with --task-vectors also with a task vector of the same demonstrations, and with one of many more. Twice: with
the right answers, and with each answer renamed to another one of the task, which only who reads the demonstrations can
say. Several sets of demonstrations, each asked about questions of its own; intervals are of a bootstrap over questions.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, cast

import numpy as np
from PIL import Image

from bundle.directory import read_manifest
from bundle.errors import ParameterError
from quant.quality.measures import bootstrap
from reference.real.held_out import held_out as real_held_out
from reference.scenes import held_out
from runtime.task_vector import has_open_heads
from serving.models.client import LocalClient
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

WAYS = ("none", "sent", "texts alone", "fused")
VECTOR, MANY = "task vector", "task vector of many"
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
        replaced_heads: Of each set of demonstrations, the heads that its task vector replaces; 0 where none was found
            that helps, and questions are asked alone.
    """

    is_right: list[bool] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    read_tokens: list[int] = field(default_factory=list)
    replaced_heads: list[int] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take over what came of another set of demonstrations."""
        for each in fields(self):
            getattr(self, each.name).extend(getattr(other, each.name))


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
        self, messages: Sequence[Message], behind: bytes | None = None, *, fuses: bool = False, learns: bool = False
    ) -> tuple[str, FinishedEvent]:
        """Return the greedy answer, and how it ended."""
        sampling = SamplingParams(max_tokens=1 if fuses else _MAX_TOKENS, temperature=0.0)
        request = GenerateRequest(
            "r", self._model, tuple(messages), sampling, fuses=fuses, learns=learns, behind=behind
        )
        events = [event async for event in self._client.generate(request)]
        text = "".join(event.text for event in events[:-1] if not isinstance(event, FinishedEvent))
        return text, cast("FinishedEvent", events[-1])

    async def outcomes(
        self, demonstrations: Sequence[Shown], many: Sequence[Shown], asked: Sequence[Shown]
    ) -> dict[str, Outcome]:
        """Return what came of every way to show demonstrations before the same questions.

        Args:
            demonstrations: That are shown.
            many: These and more, for a task vector; none where the bundle takes none.
            asked: The questions.
        """
        sent, texts = _pairs(demonstrations, with_image=True), _pairs(demonstrations, with_image=False)
        _, fused = await self.ask(sent, fuses=True)
        before: dict[str, tuple[list[Message], bytes | None]] = {
            "none": ([], None),
            "sent": (sent, None),
            "texts alone": (texts, None),
            "fused": ([], fused.fused),
        }
        found = {way: Outcome() for way in before}
        for way, of_vector in ((VECTOR, demonstrations), (MANY, many)) if many else ():
            made = await self._learned(_pairs(of_vector, with_image=True))
            before[way] = [], None if made is None else made.fused
            found[way] = Outcome(replaced_heads=[0 if made is None else made.replaced_heads])
        for each in asked:
            for way, (messages, behind) in before.items():
                reply, finished = await self.ask([*messages, _question(each, with_image=True)], behind)
                usage = finished.usage
                found[way].is_right.append(each.is_right(reply))
                found[way].rows.append(usage.cache_rows_after)
                found[way].read_tokens.append(usage.prompt_tokens - usage.cached_tokens)
        return found

    async def _learned(self, messages: Sequence[Message]) -> FinishedEvent | None:
        """Return the end of a request for a task vector; None where demonstrations teach the model nothing."""
        try:
            return (await self.ask(messages, learns=True))[1]
        except ParameterError as error:
            print(f"  {error}", flush=True)
            return None


def _question(shown: Shown, *, with_image: bool) -> Message:
    text = TextPart(shown.question)
    return Message("user", (ImagePart(shown.image), text) if with_image else (text,))


def _pairs(shown: Sequence[Shown], *, with_image: bool) -> list[Message]:
    return [message for each in shown for message in _pair(each, with_image=with_image)]


def _pair(shown: Shown, *, with_image: bool) -> tuple[Message, Message]:
    return _question(shown, with_image=with_image), Message("assistant", (TextPart(shown.answer),))


async def measure(
    bundle: pathlib.Path,
    tasks: Sequence[str],
    kind: Literal["scenes", "real"],
    num: int,
    shots: int,
    many: int,
    threads: int,
) -> dict[str, dict[str, Outcome]]:
    """Return, by task and way, what came of as many questions.

    Args:
        bundle: Of a vision-language model.
        tasks: With " renamed" behind those whose answers are renamed.
        kind: Whose questions they are.
        num: Of questions a task, in sets of demonstrations.
        shots: Demonstrations in a set.
        many: Demonstrations of a larger task vector, the same among them.
        threads: Per operator.
    """
    settings = EngineSettings(intra_threads=threads, allow_ungated=True, max_sequences=2)
    manifest = read_manifest(bundle)
    size = max(shots, many) if has_open_heads(manifest) else shots
    found: dict[str, dict[str, Outcome]] = {}
    async with LocalClient([bundle], settings) as client:
        asker = Asker(client, manifest.name)
        for task in tasks:
            name, renames = task.removesuffix(" renamed"), task.endswith(" renamed")
            shown = of_task(name, num + _NUM_SETS * size, is_real=kind == "real", renames=renames)
            if len(shown) < num + _NUM_SETS * size:
                raise SystemExit(
                    f"{task}: {len(shown)} questions about one picture each (renamed: answered in a word), "
                    f"{num + _NUM_SETS * size} are wanted; ask for fewer or another task"
                )
            demonstrations, asked = shown[: _NUM_SETS * size], shown[_NUM_SETS * size :]
            of_task_found = found.setdefault(task, {})
            for at in range(_NUM_SETS):
                mine = demonstrations[at * size : (at + 1) * size]
                larger = mine if has_open_heads(manifest) else []
                outcomes = await asker.outcomes(mine[:shots], larger, asked[at::_NUM_SETS])
                for way, outcome in outcomes.items():
                    of_task_found.setdefault(way, Outcome()).add(outcome)
            print(row(task, of_task_found), flush=True)
    return found


def row(task: str, outcomes: dict[str, Outcome]) -> str:
    """Return a line of a Markdown table: right answers, and what ways differ by with 95 % intervals, in points."""
    right = {way: 100.0 * np.array(outcome.is_right, np.float64) for way, outcome in outcomes.items()}
    cells = [f"{right[way].mean():.1f} ({np.mean(outcomes[way].rows):.0f} rows)" for way in outcomes]
    for one, other in _compared(outcomes):
        less = bootstrap(right[one] - right[other])
        cells.append(f"{less.mean:+.1f} ({less.low:+.1f} to {less.high:+.1f})")
    return f"| {task} | {len(right['sent'])} | {' | '.join(cells)} |"


def _compared(ways: Collection[str]) -> list[tuple[str, str]]:
    return [("fused", "sent"), *((way, other) for way in (VECTOR, MANY) if way in ways for other in ("none", "sent"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table, and write the answers as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--kind", choices=("scenes", "real"), default="scenes", help="whose questions")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="of one word, or 'TASK renamed'")
    parser.add_argument("--questions", type=int, default=100, help="a task")
    parser.add_argument("--shots", type=int, default=4, help="demonstrations before a question")
    parser.add_argument("--many", type=int, default=16, help="demonstrations of the larger task vector")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args(argv)
    ways = (*WAYS, VECTOR, MANY) if has_open_heads(read_manifest(args.bundle)) else WAYS
    heads = [*ways, *(f"{one} less {other}" for one, other in _compared(ways))]
    print(f"| task, {args.shots} demonstrations | n | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 2) + "|")
    found = asyncio.run(
        measure(args.bundle, args.tasks, args.kind, args.questions, args.shots, args.many, args.threads)
    )
    if args.json:
        args.json.write_text(
            json.dumps({task: {way: asdict(each) for way, each in ways.items()} for task, ways in found.items()})
        )


if __name__ == "__main__":
    main()
