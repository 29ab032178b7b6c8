"""Samples for the shipped models: held-out ones to measure compressed models on, training ones to make them with."""

from __future__ import annotations

from quant.quality.evaluation import Evaluation, Labelled
from reference import captions, scenes
from reference.real import held_out as wide

HELD_OUT, TRAINING = "held-out reference scenes", "reference scenes of the training data"
RECALL_CAPTIONS = 200
"""Distinct captions among which recall@1 is counted, whatever the samples per task: it depends on their number."""
_LABELS = {"shape": captions.SHAPE_LABELS, "colour": captions.COLOUR_LABELS}


def evaluation_of(name: str, samples: int) -> Evaluation:
    """Return the held-out samples of a shipped model.

    Args:
        name: One of the shipped checkpoints ("vlm", "clip", ...).
        samples: Questions per task, or images per set of labels.
    """
    if name == "vlm-wide":
        asked = [question for kind in wide.SMALL_KINDS for question in wide.held_out(kind, samples)]
        return Evaluation(questions=asked, source=HELD_OUT)
    if name != "clip":
        questions = [question for task in scenes.TASKS for question in scenes.held_out(task, samples)]
        return Evaluation(questions=questions, source=HELD_OUT)
    return Evaluation(
        source=HELD_OUT,
        captions=captions.held_out(RECALL_CAPTIONS),
        labelled={
            kind: Labelled(tuple(texts.values()), captions.held_out_labels(kind, samples))
            for kind, texts in _LABELS.items()
        },
    )


def calibration_of(name: str, samples: int) -> Evaluation:
    """Return what quantizers may be calibrated on: samples like those of `evaluation_of`, but of the training data.

    Args:
        name: One of the shipped checkpoints ("vlm", "clip", ...).
        samples: Questions per task, or images per set of labels and with captions.
    """
    if name == "vlm-wide":
        asked = [question for kind in wide.SMALL_KINDS for question in wide.calibration(kind, samples)]
        return Evaluation(questions=asked, source=TRAINING)
    if name != "clip":
        questions = [question for task in scenes.TASKS for question in scenes.calibration(task, samples)]
        return Evaluation(questions=questions, source=TRAINING)
    return Evaluation(
        source=TRAINING,
        captions=captions.calibration(samples),
        labelled={
            kind: Labelled(tuple(texts.values()), captions.calibration_labels(kind, samples))
            for kind, texts in _LABELS.items()
        },
    )
