"""LFM3-VL's vision tower: gated convolutions over the grid of patches, attention with shared keys between them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.decoders.lfm2 import GatedThree
from export.nn.convolution import Convolution
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, VideoPatches, patch_angles, usual_patches
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "hidden_size": 1024,
    "intermediate_size": 2560,
    "num_hidden_layers": 14,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "conv_kernel_size": 3,
    "norm_eps": 1e-5,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_ATTENTION, _CONVOLUTION = "full_attention", "conv"
_THETA = 1_000_000.0


@dataclass(frozen=True)
class Lfm3TowerConfig:
    """Sizes of the tower.

    Attributes:
        hidden_size: D.
        intermediate_size: Of the feed-forward.
        num_heads: Of queries.
        num_kv_heads: Of keys and values.
        has_attention: Of each layer; the others are convolutions.
        taps: Side of a convolution, odd.
        eps: Of every norm.
        theta: Base of the rotary embedding's frequencies.
        patch_px: Side of a patch.
        num_frames: Frames that the checkpoint's patches span; a still image is as many times itself.
        merged: Side of the square of patches that becomes one token.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    has_attention: tuple[bool, ...]
    taps: int
    eps: float
    theta: float
    patch_px: int
    num_frames: int
    merged: int

    @classmethod
    def read(cls, raw: Raw) -> Lfm3TowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: Layers, heads, convolutions or angles that are not built.
        """
        full, rope = {**DEFAULTS, **raw}, dict(raw.get("rope_parameters") or {})
        require(full, [("in_channels", 3)])
        if rope.get("rope_type", "axial") != "axial":
            raise UnsupportedConfigError(f"vision_config.rope_parameters {rope!r}: built is rope_type axial")
        num_heads, kv_heads, taps = (
            int(full[name]) for name in ("num_attention_heads", "num_key_value_heads", "conv_kernel_size")
        )
        if full["hidden_size"] % (4 * num_heads) or num_heads % kv_heads or taps % 2 == 0:
            raise UnsupportedConfigError(
                f"vision_config: hidden_size {full['hidden_size']}, num_attention_heads {num_heads}, "
                f"num_key_value_heads {kv_heads} and conv_kernel_size {taps}: wanted are heads of a multiple of 4 "
                "numbers that share keys evenly, and an odd side of convolutions"
            )
        return cls(
            hidden_size=full["hidden_size"],
            intermediate_size=full["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            has_attention=_attention_layers(full),
            taps=taps,
            eps=full["norm_eps"],
            theta=float(rope.get("rope_theta", _THETA)),
            patch_px=full["patch_size"],
            num_frames=full["temporal_patch_size"],
            merged=full["spatial_merge_size"],
        )

    @property
    def heads(self) -> Heads:
        """Of layers with attention, each key beside each of its queries."""
        size = self.hidden_size // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


def _attention_layers(full: Raw) -> tuple[bool, ...]:
    depth = full["num_hidden_layers"]
    kinds = full.get("layer_types") or [
        _CONVOLUTION if number < 2 or number % 2 else _ATTENTION for number in range(depth)
    ]
    if len(kinds) != depth or not set(kinds) <= {_ATTENTION, _CONVOLUTION}:
        raise UnsupportedConfigError(
            f"vision_config.layer_types {kinds!r:.200}: wanted is one of {_ATTENTION} and {_CONVOLUTION} for each of "
            f"the {depth} layers"
        )
    return tuple(kind == _ATTENTION for kind in kinds)


class _Attention(Module):
    def __init__(self, config: Lfm3TowerConfig, dialect: Dialect) -> None:
        super().__init__()
        size, rows, head = config.hidden_size, config.usual_rows, config.heads.size
        shared = config.num_kv_heads * head
        self.q_proj = Linear(size, size, rows=rows, bias=False)
        self.k_proj = Linear(size, shared, rows=rows, bias=False)
        self.v_proj = Linear(size, shared, rows=rows, bias=False)
        self.out_proj = Linear(size, size, rows=rows, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(head, config.eps, dialect) for _ in range(2))
        self.config, self.dialect = config, dialect

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid, angles: Angles) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        config, heads = self.config, self.config.heads
        query = self._turned(op, self.q_norm, self.q_proj(op, x), heads.num, angles)
        key = self._shared(op, self._turned(op, self.k_norm, self.k_proj(op, x), config.num_kv_heads, angles))
        value = self._shared(op, self.v_proj(op, x))
        return self.out_proj(op, self.dialect.attention(op, query, key, value, heads, None))

    def _turned(self, op: OpBuilder, norm: RMSNorm, x: ir.Value, num: int, angles: Angles) -> ir.Value:
        size = self.config.heads.size
        normed = op.Reshape(norm(op, op.Reshape(x, [0, 0, num, size])), [0, 0, num * size])
        return self.dialect.rotary(op, normed, angles.cos, angles.sin, num)

    def _shared(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D], each of the fewer heads as often as queries share it."""
        config, size = self.config, self.config.heads.size
        times = config.num_heads // config.num_kv_heads
        if times == 1:
            return x
        by_head = op.Reshape(x, [0, 0, config.num_kv_heads, 1, size])
        repeated = op.Concat(*[by_head] * times, axis=3)
        return op.Reshape(repeated, [0, 0, config.num_heads * size])


class _GridConvolution(Module):
    """out(c * conv(b * x)) over the grid, where b, c and x are of one projection."""

    def __init__(self, config: Lfm3TowerConfig) -> None:
        super().__init__()
        size, rows = config.hidden_size, config.usual_rows
        self.in_proj = Linear(size, 3 * size, rows=rows, bias=False)
        self.spatial_conv = Convolution(size, size, config.taps, groups=size, bias=False)
        self.out_proj = Linear(size, size, rows=rows, bias=False)
        self.size = size

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid, angles: Angles) -> ir.Value:
        """Return [I, N, D] from [I, N, D], patches row by row."""
        gate, gate_behind, values = op.Split(self.in_proj(op, x), axis=2, num_outputs=3, _outputs=3)
        gated = op.Transpose(op.Mul(gate, values), perm=[0, 2, 1])
        images = op.Shape(x, start=0, end=1)
        placed = op.Reshape(gated, op.Concat(images, [self.size], grid.height, grid.width, axis=0))
        mixed = op.Reshape(self.spatial_conv(op, placed), [0, 0, -1])
        return self.out_proj(op, op.Mul(gate_behind, op.Transpose(mixed, perm=[0, 2, 1])))


class _Layer(Module):
    """What mixes patches, normed before it, then a feed-forward, each with its residual."""

    def __init__(self, config: Lfm3TowerConfig, dialect: Dialect, *, has_attention: bool) -> None:
        super().__init__()
        self.operator_norm, self.ffn_norm = (RMSNorm(config.hidden_size, config.eps, dialect) for _ in range(2))
        self.feed_forward = GatedThree(config.hidden_size, config.intermediate_size, config.usual_rows)
        self.has_attention = has_attention
        if has_attention:
            self.self_attn = _Attention(config, dialect)
        else:
            self.conv = _GridConvolution(config)

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid, angles: Angles) -> ir.Value:
        mixing: Module = self.self_attn if self.has_attention else self.conv
        x = op.Add(x, mixing(op, self.operator_norm(op, x), grid, angles))
        return op.Add(x, self.feed_forward(op, self.ffn_norm(op, x)))


class Lfm3Tower(Module):
    """Pixels to the patches of images of any shape, or of groups of a video's frames.

    Args:
        config: Sizes.
        dialect: How attention and norms are written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Lfm3TowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames, is_matrix=True)
        self.embedding_norm = RMSNorm(config.hidden_size, config.eps, dialect)
        self.layers = ModuleList([_Layer(config, dialect, has_attention=has) for has in config.has_attention])
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D], row by row, and the grid, from [I, 3 or 3 * frames, height, width]."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size, self.config.theta)
        x = self.embedding_norm(op, x)
        for layer in self.layers:
            x = layer(op, x, grid, angles)
        return x, grid
