"""Weights of models by a task's words, against the steps of MoDE's own evaluation written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bundle.data_experts import task_cosines, task_weights


@pytest.mark.parametrize("num_words", [1, 3, 10, 150, 400])
def test_weights_are_those_of_the_authors_evaluation(num_words: int) -> None:
    distances = np.random.default_rng(num_words).uniform(0.3, 1.2, (num_words, 4)).astype(np.float32)
    counts = [0.0] * 4
    for row in distances.tolist():
        few = math.exp(0.5 - math.sqrt(num_words)) if num_words < 10 else 0
        many = 5.0 * math.log10(max(10, num_words - 200))
        counts[row.index(min(row))] += math.exp((few - min(row)) * many)
    shares = [math.exp(count / 8.0) for count in counts]
    assert_allclose(task_weights(distances), np.array(shares) / sum(shares), rtol=1e-5)


def test_labels_count_by_the_mean_of_their_templates_by_each_model() -> None:
    rng = np.random.default_rng(0)
    num, size, distances = 3, 5, rng.uniform(0.2, 1, (4, 3)).astype(np.float32)
    images, labels = (_units(rng, shape, num, size) for shape in ((2,), (4, 2)))
    weights = task_weights(distances)
    found = task_cosines(np.stack([_joined(each) for each in images]), _with_own_weights(labels, rng), distances)
    for image, row in zip(images, found, strict=True):
        for label, score in zip(labels, row, strict=True):
            means = label.mean(axis=0)
            cosines = [image[n] @ means[n] / np.linalg.norm(means[n]) for n in range(num)]
            assert score == pytest.approx(weights @ cosines / math.sqrt(num), abs=1e-6)


def _units(rng: np.random.Generator, shape: tuple[int, ...], num: int, size: int) -> np.ndarray:
    drawn = rng.standard_normal((*shape, num, size))
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def _joined(image: np.ndarray) -> np.ndarray:
    return np.append(image.ravel() / np.float32(math.sqrt(len(image))), np.float32(0))


def _with_own_weights(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return vectors of texts, whose parts are as long as any weights of their own."""
    weighed = labels * rng.uniform(0.1, 0.9, (*labels.shape[:3], 1)).astype(np.float32)
    flat = weighed.reshape(*labels.shape[:2], -1)
    return np.concatenate([flat, np.ones((*labels.shape[:2], 1), np.float32)], axis=-1)
