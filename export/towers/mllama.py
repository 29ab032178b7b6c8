"""Llama 3.2 Vision's tower: tiles of a grid in one sequence, embeddings by the grid's shape, gated layers behind."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import MASKED, EncoderMLP, tower_heads
from graphs.labels import Label

DEFAULTS: Raw = {
    "hidden_size": 1280,
    "hidden_act": "gelu",
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "num_channels": 3,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "layer_norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
}
_EPS = 1e-5
"""Of PyTorch's LayerNorm around the layers, which no config changes."""
_GROUP = 8
"""Vectors of a tile are padded to a multiple of it."""


@dataclass(frozen=True)
class MllamaTowerConfig:
    """Sizes of the tower.

    Attributes:
        vision: Of its layers, its tiles and its patches.
        num_global_layers: Behind the others, with gates.
        most_tiles: Of a grid.
        read_layers: Whose outputs are features beside the last one's.
    """

    vision: VisionConfig
    num_global_layers: int
    most_tiles: int
    read_layers: tuple[int, ...]

    @classmethod
    def read(cls, raw: Raw) -> MllamaTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size that is not built, or one that contradicts another.
        """
        full = {**DEFAULTS, **raw}
        full["num_attention_heads"] = full.get("attention_heads", full.get("num_attention_heads", 16))
        full["layer_norm_eps"] = full.get("norm_eps", DEFAULTS["layer_norm_eps"])
        config = cls(
            VisionConfig.read(full, DEFAULTS),
            full["num_global_layers"],
            full["max_num_tiles"],
            tuple(full["intermediate_layers_indices"] or DEFAULTS["intermediate_layers_indices"]),
        )
        require(full, [("vision_output_dim", config.out_size)])
        shapes = [list(grid) for grid in config.grids]
        if (stated := full.get("supported_aspect_ratios")) is not None and [list(each) for each in stated] != shapes:
            raise UnsupportedConfigError(
                f"vision_config.supported_aspect_ratios {stated!r:.200}; built are all grids of up to "
                f"{config.most_tiles} tiles, in this order: {shapes}"
            )
        num_layers = config.vision.tower.num_layers
        if not all(0 <= layer < num_layers for layer in config.read_layers):
            raise UnsupportedConfigError(
                f"vision_config.intermediate_layers_indices {list(config.read_layers)}: the tower has the layers 0 to "
                f"{num_layers - 1}"
            )
        return config

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every grid, in the order of their numbers, which begin at 1."""
        sides = range(1, self.most_tiles + 1)
        return tuple((rows, cols) for rows in sides for cols in sides if rows * cols <= self.most_tiles)

    @property
    def rows_per_tile(self) -> int:
        """Vectors of a tile, its class token among them."""
        return self.vision.grid**2 + 1

    @property
    def padded_rows(self) -> int:
        """The same with what pads them."""
        return -(-self.rows_per_tile // _GROUP) * _GROUP

    @property
    def out_size(self) -> int:
        """Width of a feature."""
        return self.vision.tower.hidden_size * (1 + len(self.read_layers))


@dataclass(frozen=True)
class _Canvas:
    """What the shape of the images of a run says, [1] int64 each.

    Attributes:
        rows: Tiles down.
        cols: Tiles across.
        number: Of the grid.
    """

    rows: ir.Value
    cols: ir.Value
    number: ir.Value

    @classmethod
    def of(cls, op: OpBuilder, pixel_values: ir.Value, config: MllamaTowerConfig) -> _Canvas:
        side = config.most_tiles + 1
        numbers = np.zeros((side, side), np.int64)
        for number, (rows, cols) in enumerate(config.grids, 1):
            numbers[rows, cols] = number
        table = op.initializer(ir.tensor(numbers.reshape(-1)), "grid_numbers")
        tile = config.vision.image_size_px
        down = op.Div(op.Shape(pixel_values, start=2, end=3), [tile])
        across = op.Div(op.Shape(pixel_values, start=3, end=4), [tile])
        return cls(down, across, op.Gather(table, op.Add(op.Mul(down, side), across), axis=0))


class _Patches(Module):
    """Pixels of a grid to the patches of its tiles, zeros for tiles that it has not."""

    def __init__(self, config: MllamaTowerConfig) -> None:
        super().__init__("patch_embedding")
        vision = config.vision
        self.weight = Weight(vision.tower.hidden_size, vision.num_channels, *[vision.patch_size_px] * 2)
        self.side, self.grid, self.size = vision.patch_size_px, vision.grid, vision.tower.hidden_size
        self.most_tiles = config.most_tiles

    def forward(self, op: OpBuilder, pixel_values: ir.Value, canvas: _Canvas) -> ir.Value:
        """Return [I, tiles, patches, D], tiles and patches row by row."""
        side = [self.side, self.side]
        found = op.Conv(pixel_values, self.weight, kernel_shape=side, strides=side)
        shape = op.Concat([-1, self.size], canvas.rows, [self.grid], canvas.cols, [self.grid], axis=0)
        tiles = op.Transpose(op.Reshape(found, shape), perm=[0, 2, 4, 3, 5, 1])
        images = op.Shape(pixel_values, start=0, end=1)
        flat = op.Reshape(tiles, op.Concat(images, [-1, self.grid**2, self.size], axis=0))
        none = op.initializer(ir.tensor(np.zeros((1, 1, 1, 1), np.float32)), "no_tile")
        absent = op.Expand(none, op.Concat(images, [self.most_tiles, self.grid**2, self.size], axis=0))
        return op.Slice(op.Concat(flat, absent, axis=1), [0], [self.most_tiles], [1])


class _OfGrid(Module):
    """A table of what is added to the tiles of each grid; row 0 is of no image."""

    def __init__(self, config: MllamaTowerConfig, *shape: int, name: str) -> None:
        super().__init__(name)
        sizes = (config.most_tiles, *shape, config.vision.tower.hidden_size)
        self.weight = Weight(len(config.grids) + 1, prod(sizes), label=Label("constant table"))
        self.sizes = sizes

    def forward(self, op: OpBuilder, canvas: _Canvas) -> ir.Value:
        """Return [1, tiles, *shape, D]."""
        return op.Reshape(op.Gather(self.weight, canvas.number, axis=0), [1, *self.sizes])


class _TileEmbedding(Module):
    """What is added to all vectors of a tile, by its place in its grid, let in by a gate."""

    def __init__(self, config: MllamaTowerConfig) -> None:
        super().__init__()
        self.embedding = _OfGrid(config, 1, name="embedding")
        self.gate = Weight(1)

    def forward(self, op: OpBuilder, x: ir.Value, canvas: _Canvas) -> ir.Value:
        """Return x [I, tiles, n, D] and that."""
        return op.Add(x, op.Mul(self.embedding(op, canvas), op.Tanh(self.gate)))


class _Positions(Module):
    """Positions in a tile, and in a tile of its grid; a gate says how much of either counts."""

    def __init__(self, config: MllamaTowerConfig) -> None:
        super().__init__()
        self.embedding = Weight(config.rows_per_tile, config.vision.tower.hidden_size)
        self.tile_embedding = _OfGrid(config, config.rows_per_tile, name="tile_embedding")
        self.gate = Weight(1)

    def forward(self, op: OpBuilder, x: ir.Value, canvas: _Canvas) -> ir.Value:
        """Return x [I, tiles, n, D] and its positions."""
        let_in = op.Tanh(self.gate)
        x = op.Add(x, op.Mul(op.Sub(1.0, let_in), self.embedding))
        return op.Add(x, op.Mul(let_in, self.tile_embedding(op, canvas)))


class _Attention(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(size, size, rows=rows, bias=False) for _ in range(4)
        )
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value) -> ir.Value:
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        return self.o_proj(op, self.dialect.attention(op, query, key, value, self.heads, bias))


class _Layer(Module):
    """Pre-norm attention and feed-forward; of the global layers, each is let in by a gate."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, is_gated: bool) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = _Attention(config, dialect, rows=rows)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=rows)
        self.gate_attn, self.gate_ffn = (Weight(1) if is_gated else None for _ in range(2))

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value) -> ir.Value:
        x = op.Add(x, _gated(op, self.gate_attn, self.self_attn(op, self.input_layernorm(op, x), bias)))
        return op.Add(x, _gated(op, self.gate_ffn, self.mlp(op, self.post_attention_layernorm(op, x))))


def _gated(op: OpBuilder, gate: ir.Value | None, x: ir.Value) -> ir.Value:
    return x if gate is None else op.Mul(op.Tanh(gate), x)


class _Layers(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, num: int, *, rows: int, is_gated: bool) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect, rows=rows, is_gated=is_gated) for _ in range(num)])

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value) -> list[ir.Value]:
        """Return what each layer made of x."""
        made = list[ir.Value]()
        for layer in self.layers:
            x = layer(op, x, bias)
            made.append(x)
        return made


class MllamaTower(Module):
    """Pixels of a grid of tiles to features of all tiles that a grid may have.

    Tiles that are not there are computed as black ones would be without normalisation, and seen by the others, as in
    training: only what pads is kept from looking at what pads (transformers, `_prepare_aspect_ratio_attention_mask`).

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: MllamaTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        tower, rows = config.vision.tower, config.most_tiles * config.padded_rows
        self.patch_embedding = _Patches(config)
        self.class_embedding = Weight(tower.hidden_size)
        self.pre_tile_positional_embedding = _TileEmbedding(config)
        self.gated_positional_embedding = _Positions(config)
        self.layernorm_pre = LayerNorm(tower.hidden_size, _EPS)
        self.transformer = _Layers(tower, dialect, tower.num_layers, rows=rows, is_gated=False)
        self.layernorm_post = LayerNorm(tower.hidden_size, _EPS)
        self.post_tile_positional_embedding = _TileEmbedding(config)
        self.global_transformer = _Layers(tower, dialect, config.num_global_layers, rows=rows, is_gated=True)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, tiles * rows, D * (1 + read layers)] of images [I, 3, height, width] of one grid."""
        canvas = _Canvas.of(op, pixel_values, self.config)
        bias = self._bias(op, canvas)
        made = self.transformer(op, self._embedded(op, pixel_values, canvas), bias)
        tiles = self._tiles(op, self.layernorm_post(op, made[-1]))
        behind = self._flat(op, self.post_tile_positional_embedding(op, tiles, canvas))
        *_, last = self.global_transformer(op, behind, bias)
        # transformers stacks the layers read behind the numbers of each, so that those of one number are neighbours
        read = op.Concat(*(op.Unsqueeze(made[layer], [3]) for layer in self.config.read_layers), axis=3)
        width = self.config.vision.tower.hidden_size
        return self._unpadded(
            op, op.Concat(last, op.Reshape(read, [0, 0, width * len(self.config.read_layers)]), axis=2)
        )

    def _embedded(self, op: OpBuilder, pixel_values: ir.Value, canvas: _Canvas) -> ir.Value:
        """Return [I, tiles * padded rows, D], what the first layer reads."""
        config = self.config
        patches = self.pre_tile_positional_embedding(op, self.patch_embedding(op, pixel_values, canvas), canvas)
        tiles = op.Shape(patches, start=0, end=2)
        width = config.vision.tower.hidden_size
        first = op.Expand(self.class_embedding, op.Concat(tiles, [1, width], axis=0))
        x = self.gated_positional_embedding(op, op.Concat(first, patches, axis=2), canvas)
        x = self.layernorm_pre(op, x)
        if num_missing := config.padded_rows - config.rows_per_tile:
            none = op.initializer(ir.tensor(np.zeros((1, 1, 1, 1), np.float32)), "padding")
            x = op.Concat(x, op.Expand(none, op.Concat(tiles, [num_missing, width], axis=0)), axis=2)
        return self._flat(op, x)

    def _bias(self, op: OpBuilder, canvas: _Canvas) -> ir.Value:
        """Return [1, 1, n, n]: very negative where both ends pad, 0 elsewhere."""
        rows = self.config.padded_rows
        place = op.Range(0, self.config.most_tiles * rows, 1)
        is_absent = op.GreaterOrEqual(op.Div(place, rows), op.Mul(canvas.rows, canvas.cols))
        pads = op.Or(is_absent, op.GreaterOrEqual(op.Mod(place, rows), self.config.rows_per_tile))
        both = op.And(op.Unsqueeze(pads, [0, 1, 2]), op.Unsqueeze(pads, [0, 1, 3]))
        return op.Where(both, MASKED, 0.0)

    def _flat(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, tiles * padded rows, D] of [I, tiles, padded rows, D]."""
        return op.Reshape(
            x, [0, self.config.most_tiles * self.config.padded_rows, self.config.vision.tower.hidden_size]
        )

    def _tiles(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, tiles, padded rows, D] of [I, tiles * padded rows, D]."""
        return op.Reshape(x, [0, self.config.most_tiles, self.config.padded_rows, self.config.vision.tower.hidden_size])

    def _unpadded(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, tiles * rows, W] of [I, tiles * padded rows, W]."""
        config = self.config
        tiles = op.Reshape(x, [0, config.most_tiles, config.padded_rows, config.out_size])
        kept = op.Slice(tiles, [0], [config.rows_per_tile], [2])
        return op.Reshape(kept, [0, config.most_tiles * config.rows_per_tile, config.out_size])
