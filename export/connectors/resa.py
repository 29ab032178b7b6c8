"""TextHawk's resampler: proposed queries read several depths of the tower, and lines of them become tokens.

No code of it is published. What the papers leave open (arXiv 2404.09204, section 3; 2410.05261, section 3) is said
where it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm

_EPS = 1e-6


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a resampler.

    Attributes:
        hidden_size: D, of queries.
        num_heads: Of every attention.
        intermediate_size: Width inside the feed-forwards and the network that proposes queries.
        stride: Patches a side that one query stands for at first.
        window: Queries of a line that become one token.
    """

    hidden_size: int
    num_heads: int
    intermediate_size: int
    stride: int
    window: int

    @classmethod
    def read(cls, raw: Raw, grid: int) -> ResamplerConfig:
        """Return the resampler of a config, on a tower of grid x grid patches.

        Raises:
            UnsupportedConfigError: A size is missing, or does not divide.
        """
        keys = ("hidden_size", "num_attention_heads", "intermediate_size", "query_stride", "window")
        if missing := [key for key in keys if key not in raw]:
            raise UnsupportedConfigError(f"resampler_config lacks {', '.join(missing)}")
        found = cls(*(int(raw[key]) for key in keys))
        queries = grid // max(found.stride, 1)
        if found.stride < 1 or found.window < 1 or grid % found.stride or queries % found.window:
            raise UnsupportedConfigError(
                f"resampler_config: query_stride {found.stride} and window {found.window} do not divide a tile's "
                f"{grid} patches a side, and the queries of a line"
            )
        if found.hidden_size % found.num_heads:
            raise UnsupportedConfigError(
                f"resampler_config: hidden_size {found.hidden_size} is no multiple of {found.num_heads} heads"
            )
        return found

    def tokens_per_tile(self, grid: int) -> int:
        """Return how many tokens a tile of grid x grid patches becomes."""
        side = grid // self.stride
        return side * side // self.window


class _Ends(Weight):
    """Two anchors [2, D], of length 1."""

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return them so."""
        (stored,) = parts
        return np.ascontiguousarray(stored / np.linalg.norm(stored, axis=1, keepdims=True))


class _Angle(Weight):
    """The angle between two anchors [2, D], in radians.

    Args:
        size: D.
        source: The anchors.
    """

    def __init__(self, size: int, source: str) -> None:
        super().__init__(1, name=f"{source}_angle", source=source)
        self._stored = (2, size)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a tensor holds such anchors."""
        return stored == self._stored

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [1]."""
        (stored,) = parts
        first, last = (each / np.linalg.norm(each) for each in stored.astype(np.float64))
        return np.array([np.arccos(first @ last)], np.float32)


@dataclass(frozen=True)
class _Tiles:
    """How many tiles a canvas has, [1] int64 each."""

    rows: ir.Value
    cols: ir.Value


class _Positions(Module):
    """Scalable positional embeddings: on the great arc between two anchors, a row's and a column's added (SPEs).

    A place is where the middle of a patch or query lies on the canvas, from 0 to 1, so that a query lies amid the
    patches that it was proposed from whatever the canvas is; the papers say that anchors are interpolated on the sphere
    and that rows and columns are factorised, not where the first place lies. One set serves all layers and heads.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rows, self.cols = _Ends(2, size), _Ends(2, size)
        self.of_rows, self.of_cols = _Angle(size, "rows"), _Angle(size, "cols")
        self.scale = Weight(1)
        self.size = size

    def forward(self, op: OpBuilder, tiles: _Tiles, side: int) -> ir.Value:
        """Return [tiles * side * side, D], tile by tile."""
        down = self._along(op, self.rows, self.of_rows, tiles.rows, side)
        across = self._along(op, self.cols, self.of_cols, tiles.cols, side)
        # [R, 1, side, 1, D] and [1, C, 1, side, D]
        by_row = op.Reshape(down, op.Concat(tiles.rows, [1, side, 1, self.size], axis=0))
        by_col = op.Reshape(across, op.Concat([1], tiles.cols, [1, side, self.size], axis=0))
        return op.Reshape(op.Mul(op.Add(by_row, by_col), self.scale), [-1, self.size])

    def _along(self, op: OpBuilder, ends: Weight, angle: Weight, tiles: ir.Value, side: int) -> ir.Value:
        """Return [tiles * side, D]."""
        num = op.Mul(tiles, side)
        index = op.Cast(op.Range(0, op.Squeeze(num, [0]), 1), to=ir.DataType.FLOAT)
        place = op.Unsqueeze(op.Div(op.Add(index, 0.5), op.Cast(num, to=ir.DataType.FLOAT)), [1])
        whole = op.Sin(angle)
        shares = (op.Div(op.Sin(op.Mul(part, angle)), whole) for part in (op.Sub(1.0, place), place))
        first, last = (op.Mul(share, op.Slice(ends, [at], [at + 1], [0])) for at, share in enumerate(shares))
        return op.Add(first, last)


class _Proposal(Module):
    """The query proposal network: two matrices with GELU over patches, the largest of each square, a matrix (QPN)."""

    def __init__(self, config: ResamplerConfig, in_size: int, grid: int) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.fc1 = Linear(in_size, inner, rows=grid**2)
        self.fc2 = Linear(inner, inner, rows=grid**2)
        self.proj = Linear(inner, config.hidden_size, rows=(grid // config.stride) ** 2)
        self.grid, self.stride, self.inner = grid, config.stride, inner

    def forward(self, op: OpBuilder, patches: ir.Value) -> ir.Value:
        """Return [N, queries, D] from [N, grid * grid, V]."""
        seen = self.fc2(op, op.Gelu(self.fc1(op, patches)))
        side, step = self.grid // self.stride, self.stride
        squares = op.Reshape(seen, [-1, side, step, side, step, self.inner])
        return self.proj(op, op.Reshape(op.ReduceMax(squares, [2, 4], keepdims=0), [-1, side * side, self.inner]))


class _Attention(Module):
    """Queries over what is seen; positions are added to queries and keys behind their matrices."""

    def __init__(self, config: ResamplerConfig, seen_size: int, rows: tuple[int, int], dialect: Dialect) -> None:
        super().__init__()
        size, head = config.hidden_size, config.hidden_size // config.num_heads
        self.q_proj = Linear(size, size, rows=rows[0])
        self.k_proj, self.v_proj = (Linear(seen_size, size, rows=rows[1]) for _ in range(2))
        self.o_proj = Linear(size, size, rows=rows[0])
        self.heads, self.dialect = Heads(config.num_heads, config.num_heads, head, float(head) ** -0.5), dialect
        self.rows, self.size = rows, size

    def forward(self, op: OpBuilder, x: ir.Value, seen: ir.Value, of_queries: ir.Value, of_keys: ir.Value) -> ir.Value:
        """Return [N, queries, D]; positions [tiles * rows, D] of all tiles of a canvas."""
        query = self._placed(op, self.q_proj(op, x), of_queries, self.rows[0])
        key = self._placed(op, self.k_proj(op, seen), of_keys, self.rows[1])
        return self.o_proj(op, self.dialect.attention(op, query, key, self.v_proj(op, seen), self.heads, None))

    def _placed(self, op: OpBuilder, x: ir.Value, positions: ir.Value, rows: int) -> ir.Value:
        canvas = op.Reshape(x, op.Concat([-1], op.Shape(positions), axis=0))
        return op.Reshape(op.Add(canvas, positions), [-1, rows, self.size])


class _MLP(Module):
    """Two matrices, GELU between."""

    def __init__(self, config: ResamplerConfig, rows: int) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=rows)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class _Layer(Module):
    """Queries of a tile attend to one another, but in the first layer, then to its patches, and pass two matrices.

    Each is behind a norm and added; figure 3 leaves both out for simplicity, and does not say how far self-attention
    reaches: here it stays within a tile, as the tower does.
    """

    def __init__(
        self, config: ResamplerConfig, seen_size: int, rows: tuple[int, int], dialect: Dialect, *, first: bool
    ):
        super().__init__()
        size = config.hidden_size
        self.is_first = first
        if not first:
            self.self_attn_norm = LayerNorm(size, _EPS)
            self.self_attn = _Attention(config, size, (rows[0], rows[0]), dialect)
        self.cross_attn_norm, self.seen_norm = LayerNorm(size, _EPS), LayerNorm(seen_size, _EPS)
        self.cross_attn = _Attention(config, seen_size, rows, dialect)
        self.mlp_norm, self.mlp = LayerNorm(size, _EPS), _MLP(config, rows[0])

    def forward(self, op: OpBuilder, x: ir.Value, seen: ir.Value, of_queries: ir.Value, of_keys: ir.Value) -> ir.Value:
        if not self.is_first:
            normed = self.self_attn_norm(op, x)
            x = op.Add(x, self.self_attn(op, normed, normed, of_queries, of_queries))
        seen = self.seen_norm(op, seen)
        x = op.Add(x, self.cross_attn(op, self.cross_attn_norm(op, x), seen, of_queries, of_keys))
        return op.Add(x, self.mlp(op, self.mlp_norm(op, x)))


class ReSA(Module):
    """Resampling and rearrangement, scalable positions, proposed queries and attention to several depths.

    Args:
        config: Sizes.
        grid: Patches a side of a tile.
        in_size: V, of a patch.
        out_size: The decoder's.
        num_layers: Of which each reads one depth of the tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(
        self,
        config: ResamplerConfig,
        grid: int,
        *,
        in_size: int,
        out_size: int,
        num_layers: int,
        dialect: Dialect,
        name: str,
    ) -> None:
        super().__init__(name)
        self.side, self.grid, self.config = grid // config.stride, grid, config
        rows = self.side**2, grid**2
        self.positions = _Positions(config.hidden_size)
        self.query_proposal = _Proposal(config, in_size, grid)
        self.layers = ModuleList(
            [_Layer(config, in_size, rows, dialect, first=not number) for number in range(num_layers)]
        )
        self.norm = LayerNorm(config.hidden_size, _EPS)
        self.projection = Linear(config.window * config.hidden_size, out_size, rows=rows[0] // config.window)

    def forward(self, op: OpBuilder, tile_rows: ir.Value, tile_cols: ir.Value, *depths: ir.Value) -> ir.Value:
        """Return [I, tokens, out], line by line of the canvas.

        Args:
            op: The builder.
            tile_rows: [1] int64, of a canvas.
            tile_cols: [1] int64.
            depths: [I * tiles, grid * grid, V], what each layer reads; queries are proposed from the first.
        """
        tiles = _Tiles(tile_rows, tile_cols)
        of_queries, of_keys = (self.positions(op, tiles, side) for side in (self.side, self.grid))
        x = self.query_proposal(op, depths[0])
        for layer, seen in zip(self.layers, depths, strict=True):
            x = layer(op, x, seen, of_queries, of_keys)
        lines, size = self.side // self.config.window, self.config.window * self.config.hidden_size
        by_tile = op.Concat([-1], tile_rows, tile_cols, [self.side, lines, size], axis=0)
        # reading order of the whole canvas (2410.05261: rearranged in the order of reading)
        read = op.Transpose(op.Reshape(self.norm(op, x), by_tile), perm=[0, 1, 3, 2, 4, 5])
        tokens = op.Mul(op.Mul(tile_rows, tile_cols), self.side * lines)
        return self.projection(op, op.Reshape(read, op.Concat([-1], tokens, [size], axis=0)))
