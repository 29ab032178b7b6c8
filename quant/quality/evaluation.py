"""Samples with known answers, and what a variant's results on them are beside its parent's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import QuantizationError
from bundle.prompt import Placeholder, Turn
from bundle.report import ImageSensitivity, Likenesses, PairScores, Replies, TaskAccuracy, TeacherForced
from quant.quality.measures import Float64, bootstrap

ALL_TASKS = "all"
READS_NO_TEXTS = "the model reads images only, and nothing says which answer is right"

_RULE_OF_THREE = 3.0
"""n samples without a single loss exclude, at 95 %, only losses above 3 / n (Hanley and Lippman-Hand, 1983)."""

Flags = NDArray[np.bool_]
Progress = Callable[[str], None]


class Question(Protocol):
    """Images and a conversation about them whose last turn has one right answer; `reference.scenes.Example` is one."""

    @property
    def task(self) -> str:
        """Return what is being asked about, the name under which accuracy is reported."""

    @property
    def images(self) -> Sequence[Image.Image]:
        """Return the images in the order of their placeholders."""

    @property
    def answer(self) -> str:
        """Return the right answer."""

    def messages(self) -> Sequence[Mapping[str, object]]:
        """Return the conversation up to the question, as chat templates take it: role, and content parts by type."""

    def is_right(self, reply: str) -> bool:
        """Say whether a reply counts as the answer."""


class Caption(Protocol):
    """An image and a text that is true of it; `reference.captions.CaptionedImage` is one."""

    @property
    def image(self) -> Image.Image:
        """Return the image."""

    @property
    def caption(self) -> str:
        """Return the text."""


@dataclass(frozen=True)
class Passage:
    """A question and a text that answers it.

    Attributes:
        query: The question.
        document: The text.
    """

    query: str
    document: str


@dataclass(frozen=True)
class Labelled:
    """A zero-shot task.

    Attributes:
        candidates: Texts to choose from.
        samples: Each with one of the candidates as its caption.
    """

    candidates: Sequence[str]
    samples: Sequence[Caption]


@dataclass(frozen=True)
class Evaluation:
    """What a variant is measured on.

    A vision-language model needs questions, a cross-encoder captions or passages, a dual encoder any of the others.

    Attributes:
        questions: Free generation and teacher forcing.
        captions: For recall in both directions and for cosines.
        labelled: Zero-shot tasks by name.
        passages: For cross-encoders of two texts.
        texts: Texts alone, to see how a dual encoder's text tower embeds them.
        source: Where the samples come from, for the report: a file's name, or which held-out set.
        no_accuracy: Why no answer counts as right or wrong; "" where answers do.
    """

    questions: Sequence[Question] = ()
    captions: Sequence[Caption] = ()
    labelled: Mapping[str, Labelled] = field(default_factory=dict)
    passages: Sequence[Passage] = ()
    texts: Sequence[str] = ()
    source: str = "samples of the caller"
    no_accuracy: str = ""

    @property
    def num_samples(self) -> int:
        """Questions, captioned and labelled images, passages, and texts alone together."""
        texts = len(self.passages) + len(self.texts)
        return len(self.questions) + len(self.captions) + self._num_labelled + texts

    @property
    def num_verdicts(self) -> int:
        """Answers that are right or wrong; of a caption two, for it is searched both ways unless it is the only one."""
        searches = 2 * len(self.captions) if len(self.captions) > 1 else 0
        return 0 if self.no_accuracy else len(self.questions) + searches + self._num_labelled

    @property
    def _num_labelled(self) -> int:
        return sum(len(task.samples) for task in self.labelled.values())


def fewest_verdicts(points: float) -> float:
    """Return how many answers without a single loss exclude losses above so many points; infinity for none."""
    if points <= 0:
        return math.inf
    return 1 if points >= 100 else math.ceil(100 * _RULE_OF_THREE / points)


def points_excluded(num: int) -> float:
    """Return the least loss in points, in whole hundredths, above which so many answers without one exclude any."""
    return min(math.ceil(1e4 * _RULE_OF_THREE / num) / 100, 100.0)


def require_kind(evaluation: Evaluation, *, is_dual: bool) -> None:
    """Check that samples are of the kind that a model is measured on.

    Raises:
        QuantizationError: They are not.
    """
    if is_dual and not (evaluation.captions or evaluation.labelled or evaluation.texts):
        raise QuantizationError("the evaluation holds no captions or labels, which a dual encoder is measured on")
    if not is_dual and not evaluation.questions:
        raise QuantizationError("the evaluation holds no questions, which a vision-language model is measured on")


def images_of(evaluation: Evaluation) -> list[Caption]:
    """Return the captioned and the labelled images, for a model that reads no texts.

    Raises:
        QuantizationError: There are none.
    """
    found = [*evaluation.captions, *(sample for task in evaluation.labelled.values() for sample in task.samples)]
    if not found:
        raise QuantizationError(
            f"{evaluation.source} holds no images, and the model reads nothing else; give samples with images, or "
            "measure nothing (--no-evaluate)"
        )
    return found


@dataclass(frozen=True)
class PairedFlags:
    """Which samples of a task each of the two got right.

    Attributes:
        parent: [n] bool.
        variant: [n] bool.
    """

    parent: Flags
    variant: Flags

    def losses(self) -> Float64:
        """Return the variant's loss on each sample in percentage points: -100, 0 or 100."""
        return 100.0 * (self.parent.astype(np.float64) - self.variant)

    def summary(self) -> TaskAccuracy:
        """Return the two accuracies, and the loss with its interval over pairs."""
        loss = bootstrap(self.losses())
        return TaskAccuracy(
            n=loss.n,
            fp32=float(self.parent.mean()),
            quantized=float(self.variant.mean()),
            loss_points=loss.mean,
            loss_low=loss.low,
            loss_high=max(loss.high, 100.0 * min(_RULE_OF_THREE / loss.n, 1.0)),
        )


@dataclass(frozen=True)
class Measured:
    """Results of an evaluation.

    Attributes:
        tasks: By task, "all" over every sample.
        teacher_forced: Vision-language models.
        replies: Vision-language models.
        image_sensitivity: Vision-language models, where two questions show different images.
        likenesses: "image_features" where questions show images, or "image" and "text".
        pairs: Cross-encoders.
    """

    tasks: dict[str, TaskAccuracy] = field(default_factory=dict)
    teacher_forced: TeacherForced | None = None
    replies: Replies | None = None
    image_sensitivity: ImageSensitivity | None = None
    likenesses: dict[str, Likenesses] = field(default_factory=dict)
    pairs: PairScores | None = None


def turns_of(question: Question) -> list[Turn]:
    """Return the conversation up to the question as prompts are built from.

    Raises:
        QuantizationError: A message's content is no list of parts.
    """
    turns: list[Turn] = []
    for message in question.messages():
        content = message["content"]
        if not isinstance(content, list):
            raise QuantizationError(f"task {question.task}: a message's content is no list of parts: {content!r}")
        parts = (Placeholder.IMAGE if part["type"] == "image" else str(part["text"]) for part in content)
        turns.append(Turn(str(message["role"]), tuple(parts)))
    return turns
