"""Packs an image and many questions about it into one sequence, so that each image is encoded once.

Every conversation attends to the image and to itself, never to another one, and its positions go on from the
image's end: exactly what it would meet alone. Layout of one sequence, as the Idefics3 processor writes it:

    <|im_start|>User: [<fake><global-img> 64 x <image> <fake>] per image | conversation | conversation | ...
"""

from __future__ import annotations

import dataclasses
import functools
import random

from tokenizers import Tokenizer

from reference.batches import VISUAL_TOKENS, Batch, Sequence, batched
from reference.layout import Scene
from reference.scenes import Turn, ask, scenes_for

_TRIES = 3  # per wanted conversation
# Weights of the tasks that single images are made for, and of the questions asked about them. Several images (task
# "compare") make long sequences and go into batches of their own: one padded batch costs as much as its longest.
THEMES = {"colour": 8, "relation": 38, "count": 19, "text": 23, "digit": 8, "caption": 4}
QUESTIONS = {
    "colour": 4, "shape": 4, "size": 4, "digit": 8, "count": 22, "relation": 80, "text": 30, "exist": 5, "chat": 5,
    "caption": 5, "place": 24,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images and conversations of mostly one turn about them; each turn with its task."""

    scenes: tuple[Scene, ...]
    conversations: list[list[tuple[str, Turn]]]


def sample(rng: random.Random, num_questions: int, themes: dict[str, int]) -> Sample:
    """Return training scenes and what is asked about them.

    Args:
        rng: Source of every choice, seeded from `TRAINING_SEEDS`.
        num_questions: Turns wanted, fewer when the scene has no more to ask.
        themes: Weight of each task that the scene may be made for.
    """
    theme = rng.choices(list(themes), weights=list(themes.values()))[0]
    scenes = scenes_for(theme, rng, "train")
    found: dict[str, list[tuple[str, Turn]]] = {}
    for attempt in range(_TRIES * num_questions):
        is_theme = attempt < 2 or len(scenes) > 1
        task = theme if is_theme else rng.choices(list(QUESTIONS), weights=list(QUESTIONS.values()))[0]
        turns = ask(task, scenes, rng)
        if turns is not None:
            found.setdefault(" ".join(t.question for t in turns), [(task, t) for t in turns])
        if len(found) == num_questions:
            break
    groups: list[list[tuple[str, Turn]]] = []
    for turns in found.values():
        if groups and rng.random() < 0.2:  # real conversations hold several questions
            groups[-1].extend(turns)
        else:
            groups.append(turns)
    return Sample(scenes, groups)


class Packer:
    """Owns the tokenizer and turns conversations into batches."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Remember the ids of the image placeholders."""
        self._tokenizer = tokenizer
        fake, image, whole = (
            tokenizer.token_to_id(t) for t in ("<fake_token_around_image>", "<image>", "<global-img>")
        )
        self._image = (fake, whole, *[image] * VISUAL_TOKENS, fake)
        self._start = tuple(tokenizer.encode("<|im_start|>User:").ids)
        self._encode = functools.lru_cache(maxsize=50_000)(lambda text: tuple(tokenizer.encode(text).ids))

    def prefix(self, num_images: int) -> list[int]:
        """Return the tokens before the first question."""
        return [*self._start, *self._image * num_images]

    def turn(self, turn: Turn, is_first: bool) -> tuple[list[int], int]:
        """Return a turn's tokens and how many of them come before the answer."""
        question = self._encode(f"{'' if is_first else 'User: '}{turn.question}<end_of_utterance>\nAssistant:")
        return [*question, *self._encode(f" {turn.answer}<end_of_utterance>"), *self._encode("\n")], len(question)

    def pack(self, samples: list[Sample]) -> Batch:
        """Return one batch."""
        return batched([self._sequence(s) for s in samples])

    def _sequence(self, sample: Sample) -> Sequence:
        sequence = Sequence()
        prefix_tokens = sequence.add(self.prefix(len(sample.scenes)), 0, 0)
        for number, turns in enumerate(sample.conversations, start=1):
            position = prefix_tokens
            for i, (task, turn) in enumerate(turns):
                piece, question_tokens = self.turn(turn, i == 0)
                start = len(sequence.tokens)
                sequence.learnt.append((task, start + question_tokens, start + len(piece) - 1))
                position = sequence.add(piece, number, position)
        return sequence
