"""Squares of patches as one vector, black ones beside the last, and matrices with GELU between (DeepSeek-VL2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.connectors.pixel_shuffle import pixel_shuffle
from export.nn.linear import Linear
from export.nn.module import Module

_DEFAULTS: Raw = {
    "projector_type": "downsample_mlp_gelu",
    "input_dim": 1152,
    "n_embed": 2048,
    "depth": 2,
    "mlp_ratio": 1,
    "downsample_ratio": 2,
    "token_pooling": False,
}


@dataclass(frozen=True)
class DownsampledSizes:
    """Sizes of the connector.

    Attributes:
        in_size: Width of a patch.
        inner_size: Between matrices.
        out_size: The decoder's.
        depth: Matrices.
        factor: Side of a square.
    """

    in_size: int
    inner_size: int
    out_size: int
    depth: int
    factor: int

    @classmethod
    def read(cls, raw: Raw) -> DownsampledSizes:
        """Return the connector of the authors' `projector_config`.

        Raises:
            UnsupportedConfigError: Another kind, or fewer than two matrices.
        """
        full = {**_DEFAULTS, **raw}
        require(full, [("projector_type", "downsample_mlp_gelu"), ("token_pooling", False)])
        if full["depth"] < 2:
            raise UnsupportedConfigError(f"projector_config.depth {full['depth']}: there are two matrices at least")
        inner = full["n_embed"] * full["mlp_ratio"]
        return cls(full["input_dim"], inner, full["n_embed"], full["depth"], full["downsample_ratio"])

    def side(self, grid: int) -> int:
        """Return how many squares there are along a side of so many patches."""
        return -(-grid // self.factor)


class DownsampledProjector(Module):
    """[I, grid * grid, D] patches to [I, side * side, out].

    Args:
        sizes: Of it.
        grid: Patches along one side of a tile.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, sizes: DownsampledSizes, grid: int, *, name: str) -> None:
        super().__init__(name)
        factor, side = sizes.factor, sizes.side(grid)
        widths = [sizes.in_size * factor**2, *[sizes.inner_size] * (sizes.depth - 1), sizes.out_size]
        # the checkpoint's squares have the places of a channel side by side, ours the channels of a place
        order = np.arange(widths[0]).reshape(sizes.in_size, -1).T.reshape(-1)
        for number, pair in enumerate(pairwise(widths)):
            # numbered as in the checkpoint, where activations are counted
            name = f"layers.{2 * number}"
            matrix = Linear(*pair, rows=side**2, in_order=None if number else order, name=name)
            setattr(self, f"matrix_{number}", matrix)
        self.sizes, self.grid, self.padded = sizes, grid, side * factor

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return the squares of patches [I, grid * grid, D], row by row."""
        size, behind = self.sizes.in_size, self.padded - self.grid
        if behind:
            places, images = op.Reshape(x, [-1, self.grid, self.grid, size]), op.Shape(x, start=0, end=1)
            black = op.initializer(ir.tensor(np.zeros(1, np.float32)), "black")
            for axis, shape in ((1, [behind, self.grid, size]), (2, [self.padded, behind, size])):
                added = op.Expand(black, op.Concat(images, shape, axis=0))
                places = op.Concat(places, added, axis=axis)
            x = op.Reshape(places, [-1, self.padded**2, size])
        x = pixel_shuffle(op, x, self.padded, size, self.sizes.factor)
        for number in range(self.sizes.depth):
            x = getattr(self, f"matrix_{number}")(op, op.Gelu(x) if number else x)
        return x
