from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from bundle.errors import QuantizationError
from quant.evaluation import Evaluation, Labelled, PairedFlags, measure_answers, measure_embeddings


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Asked:
    task: str
    answer: str
    content: object
    images: tuple[Image.Image, ...] = ()

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": self.content}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


class TableEncoder:
    """A dual encoder that looks embeddings up: by an image's width, and by text."""

    def __init__(self, images: list[list[float]], texts: dict[str, list[float]]) -> None:
        self._images, self._texts = images, texts

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.array([self._images[image.width - 1] for image in images], np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([self._texts[text] for text in texts], np.float32)


class Parrot:
    """A vision-language model with one answer, and logits for two tokens that favour the first by a margin."""

    def __init__(self, reply: str, margin: float) -> None:
        self._reply, self._margin = reply, margin

    def prompt_embeds(self, turns, images) -> np.ndarray:
        self.turns = turns
        return np.zeros((1, 3, 2), np.float32)

    def answer_ids(self, answer: str) -> list[int]:
        return [0] * (len(answer) + 1)

    def answer_logits(self, prompt: np.ndarray, answer_ids: list[int]) -> np.ndarray:
        return np.tile(np.array([self._margin, 0], np.float32), (len(answer_ids), 1))

    def answer(self, prompt: np.ndarray, max_tokens: int) -> str:
        return self._reply[:max_tokens]


def silent(_: str) -> None:
    pass


TEXT = [{"type": "text", "text": "Which?"}]
SAMPLES = [Captioned(Image.new("RGB", (width, 1)), text) for width, text in ((1, "a"), (2, "b"), (3, "c"))]


def test_a_loss_is_positive_where_the_variant_is_worse() -> None:
    summary = PairedFlags(np.array([True, True, True, False]), np.array([True, False, False, False])).summary()
    assert (summary.n, summary.fp32, summary.quantized, summary.loss_points) == (4, 0.75, 0.25, 50.0)
    assert 0 <= summary.loss_low <= 50 <= summary.loss_high <= 100


def test_what_both_get_alike_adds_no_width_to_the_interval() -> None:
    flags = np.array([True, False] * 20)
    summary = PairedFlags(flags, flags).summary()
    assert (summary.loss_points, summary.loss_low, summary.loss_high) == (0, 0, 0)


def test_recall_is_counted_in_the_direction_that_it_names() -> None:
    right = TableEncoder(np.eye(3).tolist(), dict(zip("abc", np.eye(3).tolist(), strict=True)))
    # Image 2 lies nearer to text a than to its own text b; text b's nearest image is image 2 all the same.
    texts = {"a": [1, 0, 0], "b": [0.6, 0.8, 0], "c": [0, 0, 1]}
    wrong = TableEncoder([[1, 0, 0], [0.96, 0.28, 0], [0, 0, 1]], texts)
    tasks = measure_embeddings(right, wrong, Evaluation(captions=SAMPLES), silent).tasks
    assert tasks["recall@1/image-to-text"].quantized == pytest.approx(2 / 3)
    assert tasks["recall@1/text-to-image"].quantized == 1
    assert tasks["all"].fp32 == 1


def test_labels_are_right_where_the_nearest_candidate_is_the_caption() -> None:
    texts = dict(zip("abc", np.eye(3).tolist(), strict=True))
    right, swapped = TableEncoder(np.eye(3).tolist(), texts), TableEncoder(np.eye(3)[[1, 0, 2]].tolist(), texts)
    evaluation = Evaluation(captions=SAMPLES, labelled={"letter": Labelled(["c", "b", "a"], SAMPLES)})
    found = measure_embeddings(right, swapped, evaluation, silent)
    assert (found.tasks["zero-shot/letter"].fp32, found.tasks["zero-shot/letter"].quantized) == (
        1,
        pytest.approx(1 / 3),
    )
    assert found.embeddings["image"].cosine_mean == pytest.approx(1 / 3)
    assert found.embeddings["text"].cosine_mean == pytest.approx(1)


def test_accuracy_is_kept_per_task_and_for_all() -> None:
    questions = [Asked("digit", "7", TEXT), Asked("digit", "8", TEXT), Asked("colour", "7", TEXT)]
    found = measure_answers(Parrot("7", 1.0), Parrot("8", 1.0), questions, silent)
    assert {name: (task.n, task.fp32, task.quantized) for name, task in found.tasks.items()} == {
        "digit": (2, 0.5, 0.5),
        "colour": (1, 1, 0),
        "all": (3, pytest.approx(2 / 3), pytest.approx(1 / 3)),
    }


def test_teacher_forcing_compares_every_answer_position() -> None:
    questions = [Asked("digit", "12", TEXT), Asked("digit", "345", TEXT)]
    found = measure_answers(Parrot("", np.log(3)), Parrot("", np.log(1 / 3)), questions, silent).teacher_forced
    assert found is not None
    assert (found.num_samples, found.num_tokens) == (2, 7)
    # Two coins, 3:1 against 1:3: KL = (3/4 - 1/4) ln 3 at every position, and the choices never agree.
    assert found.kl_mean == pytest.approx(0.5 * np.log(3))
    assert found.kl_p99 == pytest.approx(0.5 * np.log(3))
    assert found.top1_agreement == 0


def test_a_conversation_that_is_no_list_of_parts_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"task digit: .* no list of parts: 'Which"):
        measure_answers(Parrot("", 1), Parrot("", 1), [Asked("digit", "7", "Which?")], silent)


def test_an_evaluation_without_samples_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no questions"):
        measure_answers(Parrot("", 1), Parrot("", 1), [], silent)
    with pytest.raises(QuantizationError, match="no captions"):
        measure_embeddings(TableEncoder([], {}), TableEncoder([], {}), Evaluation(), silent)
