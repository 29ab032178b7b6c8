"""Transformer encoders in the CLIP and SigLIP family: towers over patches and over words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import TowerConfig, VisionConfig
from export.nn.chosen_experts import ChosenExperts
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Embedding, Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.tower_experts import TowerExperts
from graphs.labels import Label

MASKED = float(np.finfo(np.float32).min) / 2
"""Added to a score that must not count; halved so that adding it to a score cannot overflow."""


@dataclass(frozen=True)
class Looked:
    """What a layer's attention was made of, [B, T, H*C] each."""

    query: ir.Value
    key: ir.Value


class EncoderAttention(Module):
    """Multi-head self-attention with biases, over `rows` vectors of one image or text."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj = Linear(size, size, rows=rows)
        self.k_proj = Linear(size, size, rows=rows)
        self.v_proj = Linear(size, size, rows=rows)
        self.out_proj = Linear(size, size, rows=rows)
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> tuple[ir.Value, Looked]:
        """Return [B, T, D] from [B, T, D], and what it was made of; `bias` as for `Dialect.attention`."""
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        return self.out_proj(op, attended), Looked(query, key)


def tower_heads(config: TowerConfig) -> Heads:
    """Return the attention sizes of a tower, scores scaled by 1/sqrt(C)."""
    size = config.hidden_size // config.num_heads
    return Heads(config.num_heads, config.num_heads, size, float(size) ** -0.5)


class EncoderMLP(Module):
    """Two matrices with the config's activation between, over `rows` vectors of one image or text."""

    def __init__(self, config: TowerConfig, *, rows: int) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, rows=rows)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, rows=rows)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., D] from [..., D]."""
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))


class EncoderLayer(Module):
    """Pre-norm attention and MLP, each with its residual, over `rows` vectors of one image or text.

    With experts, several MLPs stand in the place of one, beside a router (`mlp.experts.{e}.fc1`, `mlp.router`).
    """

    def __init__(
        self, config: TowerConfig, dialect: Dialect, *, rows: int, experts: TowerExperts | None = None
    ) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = EncoderAttention(config, dialect, rows=rows)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=rows) if experts is None else _mixture(config, experts, dialect, rows)

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> tuple[ir.Value, Looked]:
        """Return [B, T, D] from [B, T, D], and what its attention was made of."""
        attended, looked = self.self_attn(op, self.layer_norm1(op, x), bias)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x))), looked


def _mixture(config: TowerConfig, sizes: TowerExperts, dialect: Dialect, rows: int) -> Module:
    """Return experts, each of which meets its share of the rows."""
    of_each = math.ceil(rows * sizes.per_token / sizes.num)
    experts = [EncoderMLP(config, rows=of_each) for _ in range(sizes.num)]
    return ChosenExperts(config.hidden_size, sizes, experts, dialect, rows=rows)


@dataclass(frozen=True)
class Passed:
    """What came of a stack of layers.

    Attributes:
        states: [B, T, D] before the first layer and after every layer.
        looks: Of every layer.
    """

    states: tuple[ir.Value, ...]
    looks: tuple[Looked, ...]


class Encoder(Module):
    """A stack of layers.

    Args:
        config: The tower.
        dialect: How attention is written.
        rows: Vectors of one image or of the longest text, a class token among them.
        num_layers: How many of the tower's layers are built; all by default.
    """

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, num_layers: int | None = None) -> None:
        super().__init__()
        depth = config.num_layers if num_layers is None else num_layers
        found = config.experts
        self.layers = ModuleList(
            [
                EncoderLayer(config, dialect, rows=rows, experts=found if found and number in found.layers else None)
                for number in range(depth)
            ]
        )

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None) -> Passed:
        """Return what the layers made of [B, T, D]."""
        states, looks = [x], []
        for layer in self.layers:
            state, looked = layer(op, states[-1], bias)
            states.append(state)
            looks.append(looked)
        return Passed(tuple(states), tuple(looks))


class PatchEmbedding(Module):
    """Non-overlapping patches to vectors."""

    def __init__(self, config: VisionConfig, *, bias: bool) -> None:
        super().__init__()
        side, width = config.patch_size_px, config.tower.hidden_size
        self.weight = Weight(width, config.num_channels, side, side)
        self.bias = Weight(width) if bias else None
        self.side = side

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D], row by row, from [I, channels, height, width]."""
        side = [self.side, self.side]
        bias = [] if self.bias is None else [self.bias]  # named and empty, TensorRT's parser refuses it
        grid = op.Conv(pixel_values, self.weight, *bias, kernel_shape=side, strides=side)
        flat = op.Reshape(grid, [0, 0, -1])
        return op.Transpose(flat, perm=[0, 2, 1])


class PositionTable(Module):
    """Learned positions.

    Args:
        num_rows: Rows in the checkpoint's table.
        size: Width.
        rows: [n] the table row of each place; place i has row i by default.
    """

    def __init__(self, num_rows: int, size: int, rows: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__()
        is_plain = rows is None or np.array_equal(rows, np.arange(num_rows))
        self.rows = None if is_plain else rows
        self.weight = Weight(num_rows, size, label=None if is_plain else Label("constant table"))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return x [B, n, D] plus the row of each of its n places."""
        if self.rows is None:
            return op.Add(x, self.weight)
        return op.Add(x, op.Gather(self.weight, self.rows.tolist(), axis=0))


class SiglipEmbeddings(Module):
    """Patches and positions; no class token.

    Attributes:
        num_rows: Vectors of one image.
    """

    def __init__(self, config: VisionConfig, rows: npt.NDArray[np.int64] | None = None) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.num_rows = config.grid**2
        self.position_embedding = PositionTable(self.num_rows, config.tower.hidden_size, rows)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, patches, D]."""
        return self.position_embedding(op, self.patch_embedding(op, pixel_values))


class ClipEmbeddings(Module):
    """A class token, then patches, and positions for both.

    Args:
        config: The tower.
        resamples: Images are of any shape, and positions follow it.

    Attributes:
        num_rows: Vectors of one image; of one of the config's size where it resamples.
    """

    def __init__(self, config: VisionConfig, *, resamples: bool = False) -> None:
        super().__init__()
        width = config.tower.hidden_size
        self.class_embedding = Weight(width)
        self.patch_embedding = PatchEmbedding(config, bias=False)
        self.num_rows = config.grid**2 + 1
        self.position_embedding = (
            ResampledPositions(config.grid, width) if resamples else PositionTable(self.num_rows, width)
        )
        self.resamples = resamples

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 1 + patches, D]."""
        patches = self.patch_embedding(op, pixel_values)
        images = op.Shape(patches, start=0, end=1)
        shape = op.Concat(images, [1, self.class_embedding.shape[0]], axis=0)
        x = op.Concat(op.Expand(self.class_embedding, shape), patches, axis=1)
        if not self.resamples:
            return self.position_embedding(op, x)
        return self.position_embedding(op, x, op.Div(op.Shape(pixel_values, start=2, end=4), self.patch_embedding.side))


class ResampledPositions(Module):
    """Learned positions of a class token and of a square of patches, resampled to images of any shape.

    Cubic between patches whose edges, not middles, lie on those of the table (PyTorch, `interpolate`, bicubic).

    Args:
        side: Of the square.
        size: D.
        weight: The table, by its name in the module around; its own by default.
    """

    def __init__(self, side: int, size: int, weight: Weight | None = None) -> None:
        super().__init__(None if weight is None else "")
        self.weight = Weight(side * side + 1, size) if weight is None else weight
        self.shape = (1, size, side, side)

    def forward(self, op: OpBuilder, x: ir.Value, grid: ir.Value) -> ir.Value:
        """Return x [I, 1 + patches, D] plus the position of each; `grid` [2] int64 counts rows and columns."""
        num_rows, size = self.weight.shape
        square = op.Transpose(op.Slice(self.weight, [1], [num_rows], [0]), perm=[1, 0])
        resized = op.Resize(
            op.Reshape(square, list(self.shape)),
            None,
            None,
            op.Concat([1, size], grid, axis=0),
            mode="cubic",
            cubic_coeff_a=-0.75,
            coordinate_transformation_mode="half_pixel",
        )
        patches = op.Transpose(op.Reshape(resized, [size, -1]), perm=[1, 0])
        return op.Add(x, op.Concat(op.Slice(self.weight, [0], [1], [0]), patches, axis=0))


class TextEmbeddings(Module):
    """Words and positions.

    Attributes:
        num_rows: Vectors of the longest text.
    """

    def __init__(self, vocab_size: int, max_positions: int, size: int) -> None:
        super().__init__()
        self.token_embedding = Embedding(vocab_size, size)
        self.position_embedding = _Table(max_positions, size)
        self.num_rows = max_positions

    def forward(self, op: OpBuilder, input_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T] int64."""
        words = self.token_embedding(op, input_ids)
        length = op.Shape(input_ids, start=1, end=2)
        return op.Add(words, op.Slice(self.position_embedding(op), [0], length, [0]))


class _Table(Module):
    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(num_rows, size)

    def forward(self, op: OpBuilder) -> ir.Value:
        return self.weight


def attention_bias(op: OpBuilder, attention_mask: ir.Value, *, is_causal: bool) -> ir.Value:
    """Return the scores' bias [B, 1, T, T]: 0 where a token may look, very negative where it may not.

    Args:
        op: The builder.
        attention_mask: [B, T] int64, 1 for a real token.
        is_causal: A token sees itself and those before it.
    """
    length = op.Shape(attention_mask, start=1, end=2)
    is_real = op.Unsqueeze(op.Cast(attention_mask, to=ir.DataType.BOOL), [1, 2])
    places = op.Range(0, op.Squeeze(length, [0]), 1)
    if is_causal:
        is_before = op.LessOrEqual(op.Unsqueeze(places, [0]), op.Unsqueeze(places, [1]))
        is_seen = op.And(is_real, is_before)
    else:
        is_seen = op.Expand(is_real, op.Concat([1, 1], length, length, axis=0))
    return op.Where(is_seen, 0.0, MASKED)
