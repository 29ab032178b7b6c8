"""How far a reply is from a text, in letters: edit distance, character error rate, and ANLS over them."""

from __future__ import annotations

import numpy as np

from quant.evaluation.sample import Sample

ANLS_THRESHOLD = 0.5
"""Of the normalized distance, from which on an answer is wrong and not misspelt (Biten et al. 2019, equation 1)."""


def edit_distance(a: str, b: str) -> int:
    """Return the fewest letters put in, taken out or replaced that make one text the other (Levenshtein 1966)."""
    if len(a) < len(b):
        a, b = b, a
    letters = np.array([ord(letter) for letter in b], np.int64)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for number, letter in enumerate(a, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        # What is put in comes from the left neighbour, one more each step: a running minimum of (value - place).
        row = np.minimum.accumulate(np.concatenate([[number], best]) - steps) + steps
    return int(row[-1])


def cer(reply: str, sample: Sample) -> float:
    """Return the edits that a reply needs over the letters of the right text, the best of several; 0 is perfect.

    Spaces at the ends and runs of spaces do not count, case does. A reply that goes on and on costs more than 1.
    """
    said = _plain(reply)
    return min(edit_distance(said, text) / max(len(text), 1) for text in map(_plain, sample.answers))


def num_letters(sample: Sample) -> int:
    """Return the letters of the right text: what a sample weighs in the rate over all."""
    return max(len(_plain(sample.answers[0])), 1)


def anls(reply: str, sample: Sample) -> float:
    """Return the normalized Levenshtein similarity to the nearest right answer, 0 from half wrong on.

    Case does not count (Biten et al. 2019, "Scene Text Visual Question Answering", section 3.2).
    """
    said = _plain(reply).casefold()
    return max(_similarity(said, _plain(answer).casefold()) for answer in sample.answers)


def _similarity(said: str, right: str) -> float:
    longer = max(len(said), len(right))
    distance = edit_distance(said, right) / longer if longer else 0.0
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.split())
