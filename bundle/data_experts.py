"""What each of several models counts for, by what the words of a task are near to (MoDE, arXiv 2404.16030).

Each model was trained on one coarse cluster of captions; a coarse cluster is a group of fine ones. A task's words count
for the group of the fine centre that is nearest to them, the more the nearer it is. Steps and numbers are those of the
authors' own evaluation (facebookresearch/MetaCLIP, mode/post_report_ensemble.py).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

SHARPNESS = 5.0
"""Multiplies distances of a task of few words."""
FEW_WORDS, MANY_WORDS, LEAST = 10, 200, 10
"""Tasks of fewer words than the first count distances as smaller; those of more than the second count them sharper."""
TEMPERATURE = 8.0
"""Of the softmax over the models."""


def nearer_by(num_words: int) -> float:
    """Return what is taken off the distances of a task of few words, so that one word decides too."""
    return math.exp(0.5 - math.sqrt(num_words)) if num_words < FEW_WORDS else 0.0


def sharpness(num_words: int) -> float:
    """Return what distances of a task are multiplied by."""
    return SHARPNESS * math.log10(max(LEAST, num_words - MANY_WORDS))


def task_weights(distances: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return what each of N models counts for, [N] of sum 1.

    Args:
        distances: [n, N] from each of a task's words to the nearest fine centre of each model.
    """
    num, nearest = len(distances), distances.argmin(axis=1)
    near = np.exp((nearer_by(num) - distances.min(axis=1).astype(np.float64)) * sharpness(num))
    counts = np.bincount(nearest, weights=near, minlength=distances.shape[1]) / TEMPERATURE
    shares: npt.NDArray[np.float64] = np.exp(counts - counts.max())
    shares /= shares.sum()
    return shares


def task_cosines(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.float32], distances: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return [I, n] the models' cosines, weighed for a task and divided by the root of N as vectors of images are.

    Args:
        images: [I, N * E + 1] as the graph gives them: of length 1, so that each model's part has 1 over that root.
        labels: [n, m, N * E + 1] of a label in each of m templates, whose mean counts, by each model.
        distances: [n, N] of the labels alone, as of `task_weights`: all of them are the words of the task.
    """
    num = distances.shape[1]
    parts = labels[..., :-1].reshape(*labels.shape[:2], num, -1)
    of_each = _unit(_unit(parts).mean(axis=1))
    seen = images[:, :-1].reshape(len(images), num, -1)
    weighed: npt.NDArray[np.float32] = np.einsum("ine,lne,n->il", seen, of_each, task_weights(distances))
    return weighed.astype(np.float32)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    units: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units
