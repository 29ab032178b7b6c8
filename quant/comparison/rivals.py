"""Figures of another system on the same weights, as a file that `pocketvlm report --rivals` puts beside the variants.

`python -m loadtests.llama_cpp` writes one. Quality is measured against the same fp32 bundle by the same code. Speeds
are told with their ratio to that bundle's within each turn: two runs of a shared machine are not compared by the clock.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import BundleFormatError
from bundle.machine import Machine
from bundle.report import EvaluationFacts, Replies, TaskAccuracy, TeacherForced
from runtime.turns import Quartiles

_NOTHING_ROUNDED = 1e-3
"""Of `weight_error`: rounding to 8 bits in blocks of 32 makes about 5e-3."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Speed(_Frozen):
    """Work of one kind.

    Attributes:
        per_second: Tokens.
        ratio: How many times as fast as the fp32 bundle within each turn, by the wall clock.
        processor_ratio: The same by the time of all cores that the processes used, which neighbours stretch less; with
            several threads it counts those that wait for each other too.
    """

    per_second: Quartiles
    ratio: Quartiles
    processor_ratio: Quartiles


class Rival(_Frozen):
    """One file of the other system.

    Attributes:
        name: By which it is told, such as "Q4_0".
        weight_bytes: Of its tensors: the language model alone.
        file_bytes: Of the whole file, vocabulary included.
        weight_error: Length of what its weights differ by from the float32 file's, over the length of those; None where
            that was not taken.
        teacher_forced: Against the fp32 bundle.
        replies: The same.
        tasks: The same; "all" over every task.
        prefill: Of `SpeedFacts.prompt_tokens`; None where speed was not measured.
        decode: One token behind `SpeedFacts.cached_tokens`; None where speed was not measured.
    """

    name: str
    weight_bytes: int = Field(gt=0)
    file_bytes: int = Field(gt=0)
    weight_error: float | None = None
    teacher_forced: TeacherForced
    replies: Replies
    tasks: dict[str, TaskAccuracy]
    prefill: Speed | None = None
    decode: Speed | None = None

    @property
    def keeps_weights(self) -> bool:
        """True where nothing was rounded: the parent's weights lie on the grid of its type already."""
        return self.weight_error is not None and self.weight_error < _NOTHING_ROUNDED


class SpeedFacts(_Frozen):
    """How speeds were measured.

    Attributes:
        threads: Of each contestant.
        prompt_tokens: Of a prefill into an empty cache.
        cached_tokens: Before each decoded token.
        steps: Tokens decoded in a turn.
        rounds: Turns.
        parent_prefill: Tokens a second of the fp32 bundle.
        parent_decode: The same.
    """

    threads: int
    prompt_tokens: int
    cached_tokens: int
    steps: int
    rounds: int
    parent_prefill: Quartiles
    parent_decode: Quartiles


class Rivals(_Frozen):
    """All files of one system that were held against one fp32 bundle.

    Attributes:
        system: Its name.
        version: Its binding's, and what else tells how it was built.
        parent: The fp32 bundle's name.
        parent_sha256: Its source digest.
        evaluation: What quality was measured on.
        speed: None where it was not measured.
        parity: The parent's own weights in float32 in that system: what it differs by is arithmetic.
        rivals: In the order in which they were measured.
        machine: Where.
    """

    system: str
    version: str
    parent: str
    parent_sha256: str
    evaluation: EvaluationFacts
    speed: SpeedFacts | None = None
    parity: Rival
    rivals: tuple[Rival, ...]
    machine: Machine


def write_rivals(rivals: Rivals, path: Path) -> None:
    """Write the file.

    Raises:
        BundleFormatError: It cannot be written.
    """
    try:
        path.write_text(rivals.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleFormatError(f"{path} cannot be written: {error.strerror}") from error


def read_rivals(path: Path) -> Rivals:
    """Return what a file holds.

    Raises:
        BundleFormatError: It cannot be read, or is of another form.
    """
    advice = "Write it with python -m loadtests.llama_cpp."
    try:
        return Rivals.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleFormatError(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleFormatError(f"{path}: {where}: {first['msg']}. {advice}") from error
