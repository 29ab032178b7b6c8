"""Replies to the questions of a file, kept line by line as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from bundle.errors import QuantizationError
from quant.evaluation.asking import RefusedError, Respondent, Said
from quant.evaluation.rows import lines_of
from quant.evaluation.sample import Sample

Progress = Callable[[str], None]
_LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Reply:
    """What came back for one question.

    Attributes:
        number: Of the sample's row.
        text: The reply; empty where the question was refused.
        refused: Why the model did not take it; "" where it did.
        seconds: From the question to the reply.
    """

    number: int
    text: str
    refused: str
    seconds: float


class ReplyFile:
    """A JSON Lines file: first what was asked of whom, then the replies in the order in which they came.

    Args:
        path: Of the file; what it holds is kept where it is of the same asking.
        asking: Whatever a reply depends on: the file's digest, the model, options.

    Raises:
        QuantizationError: The file holds replies of another asking, or something else.
    """

    def __init__(self, path: Path, asking: Mapping[str, Any]) -> None:
        self.path = path
        self._asking = json.loads(json.dumps(asking))
        self.known = {reply.number: reply for reply in self._read()}

    def _read(self) -> Iterator[Reply]:
        if not self.path.exists():
            return
        whole = self._without_cut_line()
        rows = iter(lines_of(self.path)) if whole else iter(())
        head = next(rows, None)
        if head is None:
            return
        if head[1] != self._asking:
            told = [
                f"{name} was {head[1].get(name)!r} and is {value!r}"
                for name, value in self._asking.items()
                if head[1].get(name) != value
            ]
            raise QuantizationError(
                f"{self.path} holds replies of another run ({'; '.join(told) or 'another file'}); pass --overwrite, "
                "or another --output"
            )
        for where, row in rows:
            try:
                yield Reply(**row)
            except TypeError as error:
                raise QuantizationError(f"{where} is no reply; pass --overwrite to begin anew") from error

    def _without_cut_line(self) -> bool:
        """Take a last line away that a stop cut off; say whether anything is left."""
        content = self.path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        if kept != content:
            self.path.write_bytes(kept)
        return bool(kept)

    def opened(self) -> TextIO:
        """Return the file, ready for the next reply."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists() or not self.path.stat().st_size
        file = self.path.open("a", encoding="utf-8")
        if is_new:
            print(json.dumps(self._asking), file=file, flush=True)
        return file


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        conversation: Of a sample; called when its turn comes.
        max_tokens: Of a reply.
        at_once: Questions that are asked at a time.
    """

    conversation: Callable[[Sample], Sequence[Said]]
    max_tokens: int
    at_once: int


async def replies_to(
    samples: Sequence[Sample], respondent: Respondent, asking: Asking, file: ReplyFile, progress: Progress
) -> list[Reply]:
    """Return the reply to each sample, asking for those alone that the file does not hold.

    Raises:
        PocketVLMError: The model cannot be asked any more; what came until then is in the file.
    """
    waiting = [sample for sample in samples if sample.place.number not in file.known]
    if len(waiting) < len(samples):
        more = f"; {len(waiting)} are asked now" if waiting else ", and nothing is asked"
        progress(f"{len(samples) - len(waiting)} of {len(samples)} replies are in {file.path}{more}")
    queue, told = iter(waiting), _Told(len(samples), len(samples) - len(waiting), progress)
    with file.opened() as out:

        async def ask_on() -> None:
            for sample in queue:  # shared: each takes the next
                reply = await _reply(sample, respondent, asking)
                file.known[reply.number] = reply
                print(json.dumps(asdict(reply), ensure_ascii=False), file=out, flush=True)
                told.one_more()

        tasks = [asyncio.create_task(ask_on()) for _ in range(max(1, min(asking.at_once, len(waiting))))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [file.known[sample.place.number] for sample in samples]


async def _reply(sample: Sample, respondent: Respondent, asking: Asking) -> Reply:
    start, text, refused = time.perf_counter(), "", ""
    try:
        text = await respondent.answer(asking.conversation(sample), asking.max_tokens)
    except RefusedError as error:
        refused = str(error)
    return Reply(sample.place.number, text, refused, round(time.perf_counter() - start, 3))


class _Told:
    """Says now and then how far it is, and for how long it will go on."""

    def __init__(self, num: int, num_known: int, progress: Progress) -> None:
        self._num, self._done, self._known, self._progress = num, num_known, num_known, progress
        self._start = self._last = time.monotonic()

    def one_more(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and self._done < self._num:
            return
        self._last = now
        left_s = (now - self._start) / (self._done - self._known) * (self._num - self._done)
        self._progress(f"{self._done} of {self._num} asked, about {left_s:.0f} s to go")
