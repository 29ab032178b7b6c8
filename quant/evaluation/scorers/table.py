"""Every way to mark replies, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quant.evaluation.sample import Sample
from quant.evaluation.scorers.box import box
from quant.evaluation.scorers.captions import cider
from quant.evaluation.scorers.choice import choice, is_unread
from quant.evaluation.scorers.edits import anls, cer, num_letters
from quant.evaluation.scorers.exact import contains, exact
from quant.evaluation.scorers.soft_vqa import soft_vqa

RIGHT = 0.5
"""From this mark on a reply counts as right where only right and wrong are told apart."""


@dataclass(frozen=True)
class Metric:
    """A way to mark replies.

    Attributes:
        title: As a reader sees it.
        mark: Of one reply; None where replies are marked together.
        mark_all: Of all replies of a file together.
        weight: Of a sample in the mean over all; None: all weigh the same.
        is_share: Marks lie between 0 and 1, and 1 is perfect.
    """

    title: str
    mark: Callable[[str, Sample], float] | None = None
    mark_all: Callable[[Sequence[str], Sequence[Sample]], list[float]] | None = None
    weight: Callable[[Sample], int] | None = None
    is_share: bool = True

    def marks(self, replies: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        """Return the mark of each reply."""
        if self.mark_all:
            return self.mark_all(replies, samples)
        mark = self.mark
        return [mark(reply, sample) for reply, sample in zip(replies, samples, strict=True)] if mark else []


METRICS = {
    "exact": Metric("right, word for word", exact),
    "contains": Metric("right answer occurs in the reply", contains),
    "vqa": Metric("VQA accuracy", soft_vqa),
    "anls": Metric("ANLS", anls),
    "cer": Metric("character error rate (0 is best)", cer, weight=num_letters, is_share=False),
    "choice": Metric("right choice", choice),
    "unread": Metric("no choice could be read (0 is best)", is_unread),
    "box": Metric("box overlaps by half", box),
    "cider": Metric("CIDEr-D (0 to 10)", mark_all=cider, is_share=False),
}
ALSO = {"choice": ("unread",), "cer": ("exact",)}
"""What is told beside a metric."""
GATED = ("exact", "contains", "vqa", "anls", "choice", "box")
"""Metrics by which a reply is right or wrong."""
