"""Rows that outlive their sequence, and what a new prompt can take over of rows that are here."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import compress, count
from operator import ne

from runtime.chunks import GRID_TOKENS
from serving.engine.sequence import RowKey, Sequence


@dataclass(eq=False)
class Kept:
    """What a slot holds of a prompt whose sequence has ended.

    Attributes:
        keys: Of its rows, by content.
        num_length_groups: G, in each of which it has these rows.
        used: The higher, the later somebody needed it; `Slots` counts.
        snapshots: As `Sequence.snapshots` says.
    """

    keys: SequenceOf[RowKey]
    num_length_groups: int
    used: int
    snapshots: SequenceOf[int] | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """[G] rows of each length group."""
        return (len(self.keys),) * self.num_length_groups


def shared_rows(held: Kept | Sequence | None, wanted: SequenceOf[RowKey]) -> int:
    """Return how many rows that a slot holds are those of a prompt, from its start on.

    Only rows that the graph for prompts wrote count: the graph for steps rounds otherwise.
    """
    if held is None:
        return 0
    keys = held.keys if isinstance(held, Kept) else held.prompt_rows
    return next(compress(count(), map(ne, keys, wanted)), min(len(keys), len(wanted)))


def reusable_rows(sequence: Sequence, num_shared: int, snapshots: SequenceOf[int] | None = None) -> int:
    """Return behind how many of the rows that are here a sequence can begin.

    It begins where any prompt may be cut. Something is left to be run, whose logits choose the next token, and never a
    single token of a prompt: kernels for one row round otherwise than those for many. Where rows will be chosen by the
    queries of the last tokens, those tokens are run. A prompt that runs in segments begins at its first token: the
    hidden states that it is cut by are not kept. So does one behind rows that are none of its prompt's. Where states of
    fixed size are kept, it begins at one of `snapshots`, behind which both rows and states are there.
    """
    if sequence.begins_alone:
        return 0
    num_rows = max(min(num_shared, sequence.num_prompt_tokens - sequence.num_fresh_tokens), 0)
    if sequence.snapshots is not None or snapshots is not None:
        return max((place for place in snapshots or () if place <= num_rows), default=0)
    return num_rows - num_rows % GRID_TOKENS
