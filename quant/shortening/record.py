"""What was measured, question by question, as a JSON file: intervals and comparisons are made of it later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bundle.errors import QuantizationError
from pages.file import write_whole
from quant.shortening.ways import Lacking, Way


@dataclass
class Answers:
    """How questions were answered in one way.

    Attributes:
        way: None leaves out nothing.
        questions: [n] which ones were asked.
        num_tokens: [n] of the right answers.
        kl: [n] mean divergence from the whole prompt's distributions over an answer's tokens, in nats.
        top1: [n] share of an answer's tokens whose likeliest choice is the whole prompt's.
        right: [n] whether the reply was right; empty where none can be.
    """

    way: Way | None
    questions: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """One model's answers.

    Attributes:
        model: Its name.
        source: Of the questions.
        tasks: Of each question.
        whole: With all of every prompt.
        ways: Every other.
        lacking: What the bundle cannot do.
    """

    model: str
    source: str
    tasks: list[str]
    whole: Answers
    ways: list[Answers]
    lacking: list[Lacking]

    @property
    def has_accuracy(self) -> bool:
        """Whether replies can be right."""
        return bool(self.whole.right)

    def of(self, way: Way) -> Answers | None:
        """Return the answers of a way; None where it was not measured."""
        return next((answers for answers in self.ways if answers.way == way), None)

    def write(self, path: Path) -> None:
        """Write a file that `read` reads.

        Raises:
            OSError: It cannot be written.
        """
        write_whole(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return what `write` wrote.

        Raises:
            QuantizationError: The file cannot be read, or is another's.
        """
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                told["model"],
                told["source"],
                told["tasks"],
                _answers(told["whole"]),
                [_answers(each) for each in told["ways"]],
                [Lacking(**each) for each in told["lacking"]],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QuantizationError(f"{path} holds no answers of `pocketvlm compression`: {error!r}") from error


def _answers(told: dict[str, Any]) -> Answers:
    way = told["way"]
    return Answers(**{**told, "way": None if way is None else Way(**way)})
