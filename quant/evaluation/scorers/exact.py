"""A reply that says just what is right, or says it among other words."""

from __future__ import annotations

from quant.evaluation.sample import Sample


def normal(text: str) -> str:
    """Return a text without what two writings of one answer differ in: case, runs of spaces, a period at the end."""
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def exact(reply: str, sample: Sample) -> float:
    """Return 1 where a reply equals a right answer apart from case, runs of spaces and a final period, else 0."""
    return float(normal(reply) in {normal(answer) for answer in sample.answers})


def contains(reply: str, sample: Sample) -> float:
    """Return 1 where a right answer occurs in a reply, else 0: how OCRBench marks (Liu et al. 2023, section 3.2)."""
    said = normal(reply)
    return float(any(normal(answer) in said for answer in sample.answers))
