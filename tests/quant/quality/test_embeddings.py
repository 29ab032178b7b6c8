from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from quant.quality.embeddings import measure_embeddings
from quant.quality.evaluation import Evaluation, Labelled


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


class TableEncoder:
    """A dual encoder that looks embeddings up: by an image's width, and by text."""

    def __init__(self, images: list[list[float]], texts: dict[str, list[float]]) -> None:
        self._images, self._texts = images, texts

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.array([self._images[image.width - 1] for image in images], np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([self._texts[text] for text in texts], np.float32)


def silent(_: str) -> None:
    pass


SAMPLES = [Captioned(Image.new("RGB", (width, 1)), text) for width, text in ((1, "a"), (2, "b"), (3, "c"))]
LETTERS = dict(zip("abc", np.eye(3).tolist(), strict=True))


def test_recall_is_counted_in_the_direction_that_it_names() -> None:
    right = TableEncoder(np.eye(3).tolist(), LETTERS)
    # Image 2 lies nearer to text a than to its own text b; text b's nearest image is image 2 all the same.
    texts = {"a": [1, 0, 0], "b": [0.6, 0.8, 0], "c": [0, 0, 1]}
    wrong = TableEncoder([[1, 0, 0], [0.96, 0.28, 0], [0, 0, 1]], texts)
    tasks = measure_embeddings(right, wrong, Evaluation(captions=SAMPLES), silent).tasks
    assert tasks["recall@1/image-to-text"].quantized == pytest.approx(2 / 3)
    assert tasks["recall@1/text-to-image"].quantized == 1
    assert tasks["all"].fp32 == 1


def test_recall_at_five_finds_a_target_among_the_five_nearest() -> None:
    num = 12
    samples = [Captioned(Image.new("RGB", (at + 1, 1)), f"text {at}") for at in range(num)]
    texts = {sample.caption: row for sample, row in zip(samples, np.eye(num).tolist(), strict=True)}
    rows = np.eye(num)
    for at in range(num):
        # Image i scores its own text below i % 8 others: the fifth nearest or better where i % 8 < 5.
        rows[at, at] = 0.5
        rows[at, [(at + 1 + k) % num for k in range(at % 8)]] = 0.9
    found = measure_embeddings(
        TableEncoder(np.eye(num).tolist(), texts),
        TableEncoder(rows.tolist(), texts),
        Evaluation(captions=samples),
        silent,
    ).tasks
    assert found["recall@5/image-to-text"].quantized == pytest.approx(sum(at % 8 < 5 for at in range(num)) / num)
    assert found["recall@1/image-to-text"].quantized == pytest.approx(sum(at % 8 == 0 for at in range(num)) / num)
    assert found["all"].n == 2 * num  # recall@5 would count the same searches twice


def test_recall_among_as_many_targets_as_it_looks_at_is_left_out() -> None:
    encoder = TableEncoder(np.eye(3).tolist(), LETTERS)
    assert set(measure_embeddings(encoder, encoder, Evaluation(captions=SAMPLES), silent).tasks) == {
        "recall@1/image-to-text",
        "recall@1/text-to-image",
        "all",
    }


def test_an_image_is_found_by_any_caption_equal_to_its_own() -> None:
    samples = [*SAMPLES[:2], Captioned(SAMPLES[2].image, "a")]
    # Images 1 and 3 share the caption "a"; text 3 is nearest to image 1 and the other way round.
    encoder = TableEncoder([[1, 0, 0], [0, 1, 0], [0.9, 0, 0.1]], LETTERS)
    tasks = measure_embeddings(encoder, encoder, Evaluation(captions=samples), silent).tasks
    assert tasks["all"].fp32 == 1


def test_labels_are_right_where_the_nearest_candidate_is_the_caption() -> None:
    right, swapped = TableEncoder(np.eye(3).tolist(), LETTERS), TableEncoder(np.eye(3)[[1, 0, 2]].tolist(), LETTERS)
    evaluation = Evaluation(captions=SAMPLES, labelled={"letter": Labelled(["c", "b", "a"], SAMPLES)})
    found = measure_embeddings(right, swapped, evaluation, silent)
    accuracy = found.tasks["zero-shot/letter"]
    assert (accuracy.fp32, accuracy.quantized) == (1, pytest.approx(1 / 3))
    assert found.likenesses["image"].cosine_mean == pytest.approx(1 / 3)
    assert found.likenesses["text"].cosine_mean == pytest.approx(1)


def test_labels_alone_are_enough() -> None:
    encoder = TableEncoder(np.eye(3).tolist(), LETTERS)
    found = measure_embeddings(
        encoder, encoder, Evaluation(labelled={"letter": Labelled(list("abc"), SAMPLES)}), silent
    )
    assert found.tasks["all"].n == 3
    assert found.likenesses["text"].n == 3


def test_where_nothing_is_right_or_wrong_captions_are_embedded_and_not_searched() -> None:
    encoder = TableEncoder(np.eye(3).tolist(), LETTERS)
    found = measure_embeddings(encoder, encoder, Evaluation(captions=SAMPLES, no_accuracy="too few"), silent)
    assert found.tasks == {}
    assert {kind: each.n for kind, each in found.likenesses.items()} == {"image": 3, "text": 3}
