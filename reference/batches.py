"""Sequences of packed conversations, put together into one batch: what all training here learns from."""

from __future__ import annotations

import dataclasses

import numpy as np

VISUAL_TOKENS = 64  # an image
_PADDING = -1  # segment number of padding
_STRESS = 4.0  # of a deciding token, in a sentence whose others follow from the question


@dataclasses.dataclass
class Sequence:
    """Tokens that are being put together; one conversation sees the shared start and itself only.

    Attributes:
        tokens: Token ids.
        positions: Rotary positions.
        segments: 0 what all see, 1.. conversations.
        learnt: Kind, start and end among the tokens of each answer.
        deciding: Places of those tokens of answers that make them right or wrong.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    segments: list[int] = dataclasses.field(default_factory=list)
    learnt: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    deciding: set[int] = dataclasses.field(default_factory=set)

    def add(self, tokens: list[int], segment: int, position: int) -> int:
        """Add tokens from a position on; return the position after them."""
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.segments += [segment] * len(tokens)
        return position + len(tokens)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed sequences.

    Attributes:
        ids: [B, T] int64 token ids.
        positions: [B, T] int64 rotary positions.
        segments: [B, T] int64; 0 what all see, 1.. conversations, -1 padding.
        rows: [N, 2] int64 (sequence, position) of every token whose successor is learnt.
        targets: [N] int64 successors.
        weights: [N] float32; a long answer counts as the square root of its length, and more where tokens decide.
        answers: [N] int64, which answer, 0..M, the successor belongs to.
        kinds: M kinds of answers.
    """

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    answers: np.ndarray
    kinds: tuple[str, ...]


def batched(sequences: list[Sequence]) -> Batch:
    """Return one batch of sequences, padded to the longest."""
    shape = (len(sequences), max(len(q.tokens) for q in sequences))
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, _PADDING, np.int64)
    for b, sequence in enumerate(sequences):
        used = slice(0, len(sequence.tokens))
        ids[b, used], positions[b, used], segments[b, used] = sequence.tokens, sequence.positions, sequence.segments
    spans = [(b, kind, start, end) for b, q in enumerate(sequences) for kind, start, end in q.learnt]
    lengths = np.array([end - start for _, _, start, end in spans], np.int64)
    rows = np.array([(b, t - 1) for b, _, start, end in spans for t in range(start, end)], np.int64)
    stress = np.array([_STRESS if t + 1 in sequences[b].deciding else 1.0 for b, t in rows])
    return Batch(
        ids,
        positions,
        segments,
        rows,
        targets=ids[rows[:, 0], rows[:, 1] + 1],
        weights=(np.repeat(lengths**-0.5, lengths) * stress).astype(np.float32),
        answers=np.repeat(np.arange(len(spans)), lengths),
        kinds=tuple(kind for _, kind, _, _ in spans),
    )
