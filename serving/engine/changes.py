"""What is done to the rows of the cache between two steps; whoever runs batches does it first, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.fused_prefix import StoredRows


@dataclass(frozen=True)
class Move:
    """Rows to be copied to another slot.

    Attributes:
        source: Slot that the rows are in.
        target: Slot that they go to; what it held is lost.
        rows: [G] how many, of each length group.
    """

    source: int
    target: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Keep:
    """Rows of a slot that stay, all others of the length group being dropped.

    Attributes:
        slot: Of the sequence.
        group: The length group.
        rows: Those kept, which move to the front in this order.
    """

    slot: int
    group: int
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class GiveBack:
    """Rows of a slot that hold nothing any more, whose memory the machine gets back.

    Attributes:
        slot: That the rows are in.
        first_row: From this one on.
        group: The length group; None: all.
    """

    slot: int
    first_row: int
    group: int | None = None


@dataclass(frozen=True)
class Load:
    """Rows from outside of the cache that a slot begins with.

    Attributes:
        slot: Of the sequence.
        rows: What they are.
    """

    slot: int
    rows: StoredRows


@dataclass(frozen=True)
class Snapshot:
    """States of fixed size that are kept as they are now, beside the slot.

    Attributes:
        slot: Of the sequence.
        number: Which of the slot's snapshots it becomes.
    """

    slot: int
    number: int


@dataclass(frozen=True)
class Restore:
    """States of fixed size that are again what they were.

    Attributes:
        slot: Of the sequence.
        number: Which of the slot's snapshots they come from.
    """

    slot: int
    number: int


Change = Move | Keep | GiveBack | Load | Snapshot | Restore
