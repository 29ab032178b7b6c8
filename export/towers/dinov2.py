"""DINOv2 (arXiv 2304.07193), as transformers keeps it: a ViT whose layers scale what they add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require
from export.nn.antialiased_positions import Kernel, resampled
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.patches import Grid
from export.nn.vit import EncoderMLP, PatchEmbedding, ResampledPositions, tower_heads

_DEFAULTS: Raw = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
WITH_REGISTERS = "dinov2_with_registers"
"""The model type of towers with registers; their class has another default for the side of a patch."""
_NUM_REGISTERS = 4
_PACKED = ("attention.qkv.weight", "attention.qkv.bias")
"""Where a checkpoint keeps queries, keys and values of one matrix."""


@dataclass(frozen=True)
class Dinov2Config(VisionConfig):
    """A tower.

    Attributes:
        is_gated: Feed-forwards are gated (DINOv2-giant).
        num_registers: Learned rows behind the class token, which no position is added to (Darcet et al., arXiv
            2309.16588); with them, positions are smoothed where they are resampled.
        kernel: By which they then are.
        packs_qkv: The checkpoint keeps queries, keys and values in one matrix.
    """

    is_gated: bool = False
    num_registers: int = 0
    kernel: Kernel = "cubic"
    packs_qkv: bool = False

    @property
    def num_rows(self) -> int:
        """Vectors of an image of the table's size."""
        return self.grid**2 + 1 + self.num_registers


def read_dinov2(raw: Raw) -> Dinov2Config:
    """Return the tower of a config.

    Raises:
        UnsupportedConfigError: Attention without biases, or no registers in a tower of the kind that has some.
    """
    full = {**_DEFAULTS, **raw}
    require(full, [("qkv_bias", True)])
    inner = int(full["hidden_size"] * full["mlp_ratio"])
    is_gated = bool(full.get("use_swiglu_ffn", False))
    if is_gated:  # two thirds, so that three matrices have as many weights as two, in whole eights
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
    sizes = VisionConfig.read({**full, "intermediate_size": inner}, {})
    has_registers = full.get("model_type") == WITH_REGISTERS
    num_registers = int(full.get("num_register_tokens", _NUM_REGISTERS)) if has_registers else 0
    if has_registers and num_registers < 1:
        raise UnsupportedConfigError(f"num_register_tokens is {num_registers}; {WITH_REGISTERS} has 1 or more")
    return Dinov2Config(**vars(sizes), is_gated=is_gated, num_registers=num_registers)


class _OfOneImage(Weight):
    """A table that the checkpoint keeps for one image, [1, rows, D]."""

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight."""
        return stored[:1] == (1,) and super().fits(stored[1:])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [rows, D]."""
        return super().from_stored([part[0] for part in parts])


class _Patches(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    """A class token, then patches, and positions that follow an image's shape."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.size, self.side, self.num_rows = config.tower.hidden_size, config.patch_size_px, config.num_rows
        self.cls_token = Weight(1, 1, self.size)
        self.patch_embeddings = _Patches(config)
        table = _OfOneImage(config.grid**2 + 1, self.size, name="position_embeddings")
        self.positions = ResampledPositions(config.grid, self.size, weight=table)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches = self.patch_embeddings(op, pixel_values)
        first = _of_each(op, self.cls_token, patches, 1, self.size)
        grid = op.Div(op.Shape(pixel_values, start=2, end=4), self.side)
        return self.positions(op, op.Concat(first, patches, axis=1), grid)


class _EmbeddingsWithRegisters(Module):
    """A class token, registers and patches, and smoothed positions for all but registers."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.size, self.num_rows, self.num_registers = config.tower.hidden_size, config.num_rows, config.num_registers
        self.side, self.grid, self.kernel = config.patch_size_px, config.grid, config.kernel
        self.cls_token = Weight(1, 1, self.size)
        self.register_tokens = Weight(1, self.num_registers, self.size)
        self.patch_embeddings = _Patches(config)
        self.table = _OfOneImage(config.grid**2 + 1, self.size, name="position_embeddings")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches = self.patch_embeddings(op, pixel_values)
        sides = op.Div(op.Shape(pixel_values, start=2, end=4), self.side)
        grid = Grid(*(op.Slice(sides, [at], [at + 1], [0]) for at in (0, 1)))
        square = op.Slice(self.table, [1], [self.grid**2 + 1], [0])
        patches = op.Add(patches, resampled(op, square, self.grid, self.size, grid, self.kernel))
        first = op.Add(self.cls_token, op.Slice(self.table, [0], [1], [0]))
        before = op.Concat(first, self.register_tokens, axis=1)
        return op.Concat(_of_each(op, before, patches, 1 + self.num_registers, self.size), patches, axis=1)


def _of_each(op: OpBuilder, rows: ir.Value, patches: ir.Value, num_rows: int, size: int) -> ir.Value:
    """Return [I, num_rows, D] the same rows [1, num_rows, D] for each of the images of some patches."""
    return op.Expand(rows, op.Concat(op.Shape(patches, start=0, end=1), [num_rows, size], axis=0))


class _GatedMLP(Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix of the checkpoint."""

    def __init__(self, config: TowerConfig, *, rows: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        sources = ("weights_in.weight", "weights_in.bias")
        self.gate_proj, self.up_proj = (
            PackedLinear(size, part, name, sources, rows=rows, out_size=inner)
            for part, name in enumerate(("gate_proj", "up_proj"))
        )
        self.weights_out = Linear(inner, size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = activation(op, "silu", self.gate_proj(op, x))
        return self.weights_out(op, op.Mul(gate, self.up_proj(op, x)))


class _Layer(Module):
    def __init__(self, config: Dinov2Config, dialect: Dialect) -> None:
        super().__init__()
        sizes, rows = config.tower, config.num_rows
        size, eps = sizes.hidden_size, sizes.layer_norm_eps
        self.norm1, self.norm2 = LayerNorm(size, eps), LayerNorm(size, eps)
        self.query, self.key, self.value = (
            PackedLinear(size, part, name, _PACKED, rows=rows)
            if config.packs_qkv
            else Linear(size, size, rows=rows, name=f"attention.attention.{name}")
            for part, name in enumerate(("query", "key", "value"))
        )
        self.dense = Linear(size, size, rows=rows, name="attention.output.dense")
        self.mlp = (_GatedMLP if config.is_gated else EncoderMLP)(sizes, rows=rows)
        self.scale1, self.scale2 = (Weight(size, name=f"layer_scale{number}.lambda1") for number in (1, 2))
        self.heads, self.dialect = tower_heads(sizes), dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        normed = self.norm1(op, x)
        query, key, value = self.query(op, normed), self.key(op, normed), self.value(op, normed)
        attended = self.dense(op, self.dialect.attention(op, query, key, value, self.heads, None))
        x = op.Add(x, op.Mul(attended, self.scale1))
        return op.Add(x, op.Mul(self.mlp(op, self.norm2(op, x)), self.scale2))


class _Encoder(Module):
    def __init__(self, config: Dinov2Config, dialect: Dialect) -> None:
        super().__init__()
        self.layer = ModuleList([_Layer(config, dialect) for _ in range(config.tower.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layer:
            x = layer(op, x)
        return x


class Dinov2Tower(Module):
    """Images of any shape to what their class token became, or all of their rows.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
        pools: Only the class token is wanted.
        norms: What is wanted is normed.
    """

    def __init__(
        self, config: Dinov2Config, dialect: Dialect, name: str, *, pools: bool = True, norms: bool = True
    ) -> None:
        super().__init__(name)
        self.embeddings = (_EmbeddingsWithRegisters if config.num_registers else _Embeddings)(config)
        self.encoder = _Encoder(config, dialect)
        self.layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps) if norms else None
        self.pools = pools

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D], or [I, 1 + registers + patches, D], from [I, 3, height, width]."""
        hidden = self.encoder(op, self.embeddings(op, pixel_values))
        wanted = op.Gather(hidden, 0, axis=1) if self.pools else hidden
        return wanted if self.layernorm is None else self.layernorm(op, wanted)
