"""Patches convolved, averaged to fewer, and convolved again (C-Abstractor; Honeybee, arXiv 2312.06742, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.connectors.adaptive_pool import AdaptivePool
from export.nn.convolution import Convolution, Pointwise
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm

DEFAULTS: Raw = {
    "projector_type": "c-abs",
    "depth": 3,
    "mlp_depth": 2,
    "hidden_size": 1024,
    "num_query_tokens": 144,
    "num_eos_tokens": 0,
    "pos_emb": True,
    "prenorm": False,
}
"""Of the authors' configuration (github.com/khanrc/honeybee, `configs/model_config/c-abs.yaml`)."""
_EPS = 1e-5
_SQUEEZED = 0.25
"""Width inside squeeze-and-excitation over that of a block's input."""


@dataclass(frozen=True)
class CAbstractorConfig:
    """Sizes of the connector.

    Attributes:
        depth: Blocks before the average, and behind it.
        mlp_depth: Matrices behind all.
        hidden_size: Of the blocks.
        side: Of the square of tokens that comes out.
        has_positions: A learned vector is added to each patch.
        has_norm: Patches are normed first.
    """

    depth: int
    mlp_depth: int
    hidden_size: int
    side: int
    has_positions: bool
    has_norm: bool

    @classmethod
    def read(cls, raw: Raw, grid: int) -> CAbstractorConfig:
        """Return the connector of a config, over so many patches a side.

        Raises:
            UnsupportedConfigError: Another connector, tokens that are no square, or more than there are patches.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("projector_type", "c-abs"), ("num_eos_tokens", 0)])
        num_tokens, depths = int(full["num_query_tokens"]), (int(full["depth"]), int(full["mlp_depth"]))
        side = isqrt(num_tokens)
        if side * side != num_tokens or not 1 <= side <= grid:
            raise UnsupportedConfigError(
                f"projector_config.num_query_tokens {num_tokens}: wanted is a square, of 1 to {grid} tokens a side, as "
                f"an image has {grid} patches a side"
            )
        if min(depths) < 1:
            raise UnsupportedConfigError(
                f"projector_config has depth {depths[0]} and mlp_depth {depths[1]}; both are 1 at least"
            )
        return cls(*depths, int(full["hidden_size"]), side, bool(full["pos_emb"]), bool(full["prenorm"]))


class _Pointwise(Module):
    """A convolution of side 1 and a norm over the channels of each place."""

    def __init__(self, in_size: int, out_size: int, rows: int) -> None:
        super().__init__()
        self.conv = Pointwise(in_size, out_size, rows=rows, bias=False)
        self.bn = LayerNorm(out_size, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.bn(op, self.conv(op, x))


class _Depthwise(Module):
    """A convolution of side 3, of each channel by itself, and a norm over the channels of each place."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = Convolution(size, size, 3, groups=size, bias=False)
        self.bn = LayerNorm(size, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        convolved = self.conv(op, op.Transpose(x, perm=[0, 3, 1, 2]))
        return self.bn(op, op.Transpose(convolved, perm=[0, 2, 3, 1]))


class _SqueezeExcite(Module):
    """Channels scaled by what their means over all places say (Hu et al., arXiv 1709.01507)."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(size, inner, rows=1)
        self.fc2 = Pointwise(inner, size, rows=1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        means = op.ReduceMean(x, [1, 2], keepdims=1)
        return op.Mul(x, op.Sigmoid(self.fc2(op, _silu(op, self.fc1(op, means)))))


class _Block(Module):
    """A bottleneck of RegNet's (Radosavovic et al., arXiv 2003.13678) with squeeze-and-excitation, channels last."""

    def __init__(self, in_size: int, size: int, rows: int) -> None:
        super().__init__()
        self.conv1 = _Pointwise(in_size, size, rows)
        self.conv2 = _Depthwise(size)
        self.se = _SqueezeExcite(size, round(in_size * _SQUEEZED))
        self.conv3 = _Pointwise(size, size, rows)
        self.downsample = None if in_size == size else _Pointwise(in_size, size, rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = _silu(op, self.conv2(op, _silu(op, self.conv1(op, x))))
        added = self.conv3(op, self.se(op, inner))
        return _silu(op, op.Add(added, x if self.downsample is None else self.downsample(op, x)))


class _Stage(Module):
    """Blocks one after the other."""

    def __init__(self, depth: int, in_size: int, size: int, rows: int, name: str) -> None:
        super().__init__(name)
        self.in_order = tuple(_Block(size if number else in_size, size, rows) for number in range(depth))
        for number, block in enumerate(self.in_order, 1):
            setattr(self, f"b{number}", block)  # as the checkpoint counts them

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for block in self.in_order:
            x = block(op, x)
        return x


class CAbstractor(Module):
    """Two stages of blocks with an average between, and matrices to the decoder's width.

    Args:
        config: Sizes.
        grid: Patches along one side.
        in_size: Width of a patch.
        out_size: The decoder's.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: CAbstractorConfig, grid: int, in_size: int, out_size: int, *, name: str) -> None:
        super().__init__(name)
        rows, size = config.side**2, config.hidden_size
        self.prenorm = LayerNorm(in_size, _EPS) if config.has_norm else None
        self.pos_emb = Weight(1, grid**2, in_size) if config.has_positions else None
        self.before = _Stage(config.depth, in_size, size, grid**2, "net.0")
        self.behind = _Stage(config.depth, size, size, rows, "net.2")
        self.readout = tuple(
            Linear(out_size if number else size, out_size, rows=rows, name=f"readout.{2 * number}")
            for number in range(config.mlp_depth)
        )
        for number, matrix in enumerate(self.readout):
            setattr(self, f"readout_{number}", matrix)
        self.average = AdaptivePool(grid, config.side)
        self.grid, self.in_size, self.side = grid, in_size, config.side

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, side * side, out_size] from [I, grid * grid, in_size], row by row."""
        x = x if self.prenorm is None else self.prenorm(op, x)
        x = x if self.pos_emb is None else op.Add(x, self.pos_emb)
        x = self.before(op, op.Reshape(x, [0, self.grid, self.grid, self.in_size]))
        x = op.Reshape(self.behind(op, self.average(op, x)), [0, self.side**2, -1])
        for number, matrix in enumerate(self.readout):
            x = matrix(op, _silu(op, x) if number else x)
        return x


def _silu(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Mul(x, op.Sigmoid(x))
