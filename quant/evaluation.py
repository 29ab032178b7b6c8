"""Samples with known answers, and a variant's results on them beside its parent's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import QuantizationError
from bundle.prompt import Placeholder, Turn
from quant.gate import Interval, bootstrap, cosines, kl_divergences, top1_agreements
from quant.report import Embeddings, TaskAccuracy, TeacherForced
from quant.running import DualEncoderRunner, Float32, VisionLanguageRunner

ALL_TASKS = "all"
_MOST_EXTRA_TOKENS = 8
"""An answer may run this much longer than the right one before it is cut: it is wrong by then."""

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
    """What a variant is measured on. A vision-language model needs questions; a dual encoder the other two.

    Attributes:
        questions: Free generation and teacher forcing.
        captions: Distinct captions, for recall@1 in both directions and for cosines.
        labelled: Zero-shot tasks by name.
    """

    questions: Sequence[Question] = ()
    captions: Sequence[Caption] = ()
    labelled: Mapping[str, Labelled] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedFlags:
    """Which samples of a task each of the two got right.

    Attributes:
        parent: [n] bool.
        variant: [n] bool.
    """

    parent: Flags
    variant: Flags

    def loss(self) -> Interval:
        """Return the variant's loss in percentage points with its interval over pairs."""
        return bootstrap(100.0 * (self.parent.astype(np.float64) - self.variant))

    def summary(self) -> TaskAccuracy:
        """Return the two accuracies and the loss."""
        loss = self.loss()
        return TaskAccuracy(
            n=loss.n,
            fp32=float(self.parent.mean()),
            quantized=float(self.variant.mean()),
            loss_points=loss.mean,
            loss_low=loss.low,
            loss_high=loss.high,
        )


@dataclass(frozen=True)
class Measured:
    """Results of an evaluation.

    Attributes:
        tasks: By task, "all" over every sample.
        teacher_forced: Vision-language models.
        embeddings: Dual encoders: "image" and "text".
    """

    tasks: dict[str, TaskAccuracy]
    teacher_forced: TeacherForced | None = None
    embeddings: dict[str, Embeddings] = field(default_factory=dict)


def measure_answers(
    parent: VisionLanguageRunner, variant: VisionLanguageRunner, questions: Sequence[Question], progress: Progress
) -> Measured:
    """Return how a variant answers questions beside its parent: freely, and with the right answers fed.

    Raises:
        QuantizationError: There are no questions.
    """
    if not questions:
        raise QuantizationError("the evaluation holds no questions, which a vision-language model is measured on")
    divergences, agreements, right = [], [], []
    for at, question in enumerate(questions):
        if at % 50 == 0:
            progress(f"evaluating question {at + 1} of {len(questions)}")
        logits, replies = zip(*(_answer(runner, question) for runner in (parent, variant)), strict=True)
        divergences.append(kl_divergences(*logits))
        agreements.append(top1_agreements(*logits))
        right.append([question.is_right(reply) for reply in replies])
    kl = np.concatenate(divergences)
    forced = TeacherForced(
        num_samples=len(questions),
        num_tokens=kl.size,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        top1_agreement=float(np.concatenate(agreements).mean()),
    )
    return Measured(_by_task([question.task for question in questions], np.array(right)), forced)


def measure_embeddings(
    parent: DualEncoderRunner, variant: DualEncoderRunner, evaluation: Evaluation, progress: Progress
) -> Measured:
    """Return how a variant embeds beside its parent: cosines, recall@1 both ways, zero-shot accuracy.

    Raises:
        QuantizationError: There are no captions.
    """
    if not evaluation.captions:
        raise QuantizationError("the evaluation holds no captions, which a dual encoder is measured on")
    progress(f"embedding {len(evaluation.captions)} images and captions twice")
    images = [runner.embed_images([sample.image for sample in evaluation.captions]) for runner in (parent, variant)]
    texts = [runner.embed_texts([sample.caption for sample in evaluation.captions]) for runner in (parent, variant)]
    tasks = {
        "recall@1/image-to-text": PairedFlags(*(_finds(*pair) for pair in zip(images, texts, strict=True))),
        "recall@1/text-to-image": PairedFlags(*(_finds(*pair) for pair in zip(texts, images, strict=True))),
    }
    for name, labelled in evaluation.labelled.items():
        progress(f"classifying {len(labelled.samples)} images by {name}")
        tasks[f"zero-shot/{name}"] = PairedFlags(*(_classifies(runner, labelled) for runner in (parent, variant)))
    both = PairedFlags(*(np.concatenate([getattr(task, who) for task in tasks.values()]) for who in _PAIR))
    summaries = {name: pair.summary() for name, pair in {**tasks, ALL_TASKS: both}.items()}
    return Measured(summaries, embeddings={"image": _compare(*images), "text": _compare(*texts)})


_PAIR = ("parent", "variant")


def _answer(runner: VisionLanguageRunner, question: Question) -> tuple[Float32, str]:
    """Return the logits over the right answer's tokens, and the model's own reply."""
    prompt = runner.prompt_embeds(list(turns_of(question)), question.images)
    answer_ids = runner.answer_ids(question.answer)
    reply = runner.answer(prompt, len(answer_ids) + _MOST_EXTRA_TOKENS)
    return runner.answer_logits(prompt, answer_ids), reply


def turns_of(question: Question) -> Iterator[Turn]:
    """Yield a question's conversation as prompts are built from it.

    Raises:
        QuantizationError: A message's content is no list of parts.
    """
    for message in question.messages():
        content = message["content"]
        if not isinstance(content, list):
            raise QuantizationError(f"task {question.task}: a message's content is no list of parts: {content!r}")
        parts = (Placeholder.IMAGE if part["type"] == "image" else str(part["text"]) for part in content)
        yield Turn(str(message["role"]), tuple(parts))


def _by_task(tasks: Sequence[str], right: Flags) -> dict[str, TaskAccuracy]:
    """Return the accuracy per task from [n, 2] flags of parent and variant."""
    names = np.array(tasks)
    groups = {name: right[names == name] for name in dict.fromkeys(tasks)}
    return {name: PairedFlags(rows[:, 0], rows[:, 1]).summary() for name, rows in {**groups, ALL_TASKS: right}.items()}


def _finds(queries: Float32, targets: Float32) -> Flags:
    """Return for each query whether its own target is the nearest: [n] bool from two [n, E]."""
    return np.asarray((queries @ targets.T).argmax(axis=1) == np.arange(len(queries)))


def _classifies(runner: DualEncoderRunner, labelled: Labelled) -> Flags:
    candidates = list(labelled.candidates)
    scores = runner.embed_images([sample.image for sample in labelled.samples]) @ runner.embed_texts(candidates).T
    return np.array(
        [candidates[at] == sample.caption for at, sample in zip(scores.argmax(axis=1), labelled.samples, strict=True)]
    )


def _compare(expected: Float32, found: Float32) -> Embeddings:
    values = cosines(expected, found)
    return Embeddings(n=values.size, cosine_mean=float(values.mean()), cosine_p1=float(np.percentile(values, 1)))
