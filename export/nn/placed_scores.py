"""What places add to scores, apart from what stands there: OFA's attention (arXiv 2202.03052), as TUPE (2006.15595).

A score is (q k + a b) * scale + r: q and k of hidden states, a and b of normed learned places, the same for all layers,
and r by how far two places are apart, of each layer and head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module, Weight
from graphs.labels import Label

_EPS = 1e-5
"""Of PyTorch's LayerNorm."""
MOST_APART = 1024
"""Places that token distances are told of (OFA's `DEFAULT_MAX_SOURCE_POSITIONS`)."""


def token_distances(bucket_size: int) -> npt.NDArray[np.int64]:
    """Return [2 * MOST_APART - 1] the row of a layer's table for each distance i - j, from the most negative on.

    Near ones have a row each, far ones share some by their logarithm, in float32 as the reference rounds
    (OFA's `make_token_bucket_position`).
    """
    apart = np.arange(1 - MOST_APART, MOST_APART)
    middle = bucket_size // 2
    far = np.maximum(np.abs(apart), middle - 1)
    shares = np.log((far / middle).astype(np.float32)) / np.float32(math.log((MOST_APART - 1) / middle))
    logs = np.ceil(shares * np.float32(middle - 1)).astype(np.int64) + middle
    rows = np.where(far <= middle, apart, np.minimum(logs, bucket_size - 1) * np.sign(apart)) + bucket_size - 1
    return rows.astype(np.int64)


def image_distances(bucket_size: int, height: int, width: int) -> npt.NDArray[np.int64]:
    """Return [n, n] the row of a layer's table for each two places of a map (OFA's `make_image_bucket_position`)."""
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)
    apart = grid[:, None] - grid[None] + bucket_size - 1
    return (apart[..., 0] * (2 * bucket_size - 1) + apart[..., 1]).astype(np.int64)


class _Folded(Weight):
    """Learned places, normed and projected: what they add to a score does not depend on what stands there."""

    def __init__(self, num_rows: int, size: int, name: str, sources: Sequence[str]) -> None:
        super().__init__(num_rows, size, name=name, label=Label("constant table"))
        self._own, self._sources = name, tuple(sources)

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        around = str(self.name).removesuffix(self._own)
        return tuple(around + key for key in self._sources)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape is one of the parts."""
        num_rows, size = self.shape
        return stored in ((num_rows, size), (size,), (size, size))

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [n, D]: the norm of the places, times a matrix, plus its biases."""
        places, gain, shift, matrix, bias = (part.astype(np.float64) for part in parts)
        centred = places - places.mean(axis=1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + _EPS) * gain + shift
        return np.asarray(normed @ matrix.T + bias, np.float32)


class FoldedPlaces(Module):
    """Rows of places for one side of a score.

    Args:
        num_rows: Of the table of places.
        size: D.
        name: Of the projection, e.g. "self_pos_q_linear".
    """

    def __init__(self, num_rows: int, size: int, name: str) -> None:
        super().__init__("")
        sources = ("embed_positions.weight", "pos_ln.weight", "pos_ln.bias", f"{name}.weight", f"{name}.bias")
        self.table = _Folded(num_rows, size, f"{name}.places", sources)

    def forward(self, op: OpBuilder, places: ir.Value | None) -> ir.Value:
        """Return [..., D] of places [...] int64; None: the whole table."""
        return self.table if places is None else op.Gather(self.table, places, axis=0)
