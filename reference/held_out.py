"""The held-out sets on which a compressed reference model is compared with its parent."""

from __future__ import annotations

from quant.evaluation import Evaluation, Labelled
from reference import captions, scenes

RECALL_CAPTIONS = 200
"""Distinct captions among which recall@1 is counted, whatever the samples per task: it depends on their number."""


def evaluation_of(name: str, samples: int) -> Evaluation:
    """Return the held-out samples of a shipped model.

    Args:
        name: "vlm" or "clip", as in `reference.bundles.CHECKPOINTS`.
        samples: Questions per task, or images per set of labels.
    """
    if name == "vlm":
        return Evaluation(questions=[q for task in scenes.TASKS for q in scenes.held_out(task, samples)])
    labels = {"shape": captions.SHAPE_LABELS, "colour": captions.COLOUR_LABELS}
    return Evaluation(
        captions=captions.held_out(RECALL_CAPTIONS),
        labelled={
            kind: Labelled(tuple(texts.values()), captions.held_out_labels(kind, samples))
            for kind, texts in labels.items()
        },
    )
