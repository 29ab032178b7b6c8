"""Batches for fine-tuning: visual tokens, questions, and what the shipped model answers, made once and kept.

The tower stays as it is in fine-tuning, so a batch's visual tokens never change. Kept on disk they serve every run that
is compared with another, which then costs a decoder's work only and sees exactly the same data.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset
from transformers import SmolVLMForConditionalGeneration

from reference import vlm_model
from reference.batches import Batch
from reference.train_vlm import Conversations
from reference.training import ATTENTION

FIRST_SEED = 1 << 37  # of training scenes that no earlier stage has drawn
_NICENESS = 10


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One batch.

    Attributes:
        features: [I, 64, D] bfloat16 visual tokens.
        batch: What is asked about the images.
        logits: [N, V] float16, the shipped model's logits of the rows that are learnt.
    """

    features: torch.Tensor
    batch: Batch
    logits: torch.Tensor

    def student_logits(self, model: SmolVLMForConditionalGeneration) -> torch.Tensor:
        """Return float32 logits [N, V] of a model in bfloat16 for the rows that are learnt."""
        ids, positions, segments, rows = (
            torch.from_numpy(a) for a in (self.batch.ids, self.batch.positions, self.batch.segments, self.batch.rows)
        )
        return vlm_model.answer_logits(model, self.features, ids, positions, segments, rows)


def load_vlm(folder: pathlib.Path) -> SmolVLMForConditionalGeneration:
    """Return a checkpoint in float32 that attends by plain products, for training: the caller gives every mask."""
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation(ATTENTION)
    return model


class Lessons(IterableDataset):  # type: ignore[type-arg]
    """Lessons number `start` and on, for ever; each is made when no file holds it yet."""

    def __init__(self, teacher: pathlib.Path, conversations: Conversations, folder: pathlib.Path, start: int) -> None:
        """Remember where everything is; one data worker at most, or lessons would be counted twice.

        Args:
            teacher: Checkpoint whose tower and answers are used.
            conversations: Source of batches, at lesson `start`.
            folder: Keeps the lessons.
            start: Number of the first lesson.
        """
        self._teacher_folder = teacher
        self._conversations = conversations
        self._folder = folder
        self._start = start

    def __iter__(self) -> Iterator[Lesson]:
        """Yield lessons for ever."""
        if torch.utils.data.get_worker_info():
            os.nice(_NICENESS)
        self._folder.mkdir(parents=True, exist_ok=True)
        teacher = load_vlm(self._teacher_folder).to(torch.bfloat16)
        number = self._start
        while True:
            path = self._folder / f"{number:05d}.pt"
            if not path.exists():
                self._write(teacher, number, path)
            saved = torch.load(path, weights_only=False)
            yield Lesson(**saved)
            number += 1

    @torch.inference_mode()
    def _write(self, teacher: SmolVLMForConditionalGeneration, number: int, path: pathlib.Path) -> None:
        pixels, _, batch = self._conversations.numbered(number)
        lesson = Lesson(vlm_model.image_features(teacher, pixels), batch, torch.empty(0))
        logits = lesson.student_logits(teacher).half()
        partial = path.with_suffix(".partial")
        torch.save({"features": lesson.features, "batch": batch, "logits": logits}, partial)
        partial.replace(path)
