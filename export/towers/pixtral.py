"""Pixtral's vision tower (arXiv 2410.07073, section 2.2): Llama's layers over images of any shape."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.patches import Grid, StillPatches, alternating_patch_angles, usual_patches
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 16,
    "hidden_act": "gelu",
}
_EPS = 1e-5
"""Of every norm, which no config of the model changes."""
_THETA = 10_000.0


@dataclass(frozen=True)
class PixtralConfig:
    """Sizes of the tower.

    Attributes:
        num_layers: Depth, as far as it is read.
        hidden_size: D.
        intermediate_size: Of the gated feed-forward.
        hidden_act: Of its gate.
        num_heads: H.
        patch_px: Side of a patch.
        theta: Base of the frequencies by which patches turn.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    hidden_act: str
    num_heads: int
    patch_px: int
    theta: float
    mlp_bias: bool = False

    @classmethod
    def read(cls, raw: Raw) -> PixtralConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: Heads that do not make up the width, or angles of another kind.
        """
        full = {**DEFAULTS, **raw}
        require(full, [("model_type", "pixtral"), ("num_channels", 3)])
        size, heads = full["hidden_size"], full["num_attention_heads"]
        if size % heads or full.get("head_dim", size // heads) != size // heads or size // heads % 4:
            raise UnsupportedConfigError(
                f"vision_config: hidden_size {size} in {heads} heads of {full.get('head_dim', size / heads)}; heads "
                "that make up the width are built, of a multiple of 4 numbers"
            )
        patch = full["patch_size"]
        if not isinstance(patch, int):
            raise UnsupportedConfigError(f"vision_config.patch_size {patch!r}: only one number, of squares, is built")
        return cls(
            num_layers=full["num_hidden_layers"],
            hidden_size=size,
            intermediate_size=full["intermediate_size"],
            hidden_act=full["hidden_act"],
            num_heads=heads,
            patch_px=patch,
            theta=_theta(full),
        )

    @property
    def heads(self) -> Heads:
        """Of every layer."""
        size = self.hidden_size // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


def _theta(full: Raw) -> float:
    """Return the base of the frequencies.

    Raises:
        UnsupportedConfigError: They are not those of rows and columns.
    """
    given = full.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "axial"))
    if kind not in ("axial", "default"):
        raise UnsupportedConfigError(f"vision_config.rope_parameters {dict(given)!r}: the tower turns by 'axial' alone")
    theta: float = given.get("rope_theta") or full.get("rope_theta") or _THETA
    return theta


class _Attention(Module):
    def __init__(self, config: PixtralConfig, dialect: Dialect) -> None:
        super().__init__()
        size, rows = config.hidden_size, config.usual_rows
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(size, size, rows=rows, bias=False) for _ in range(4)
        )
        self.heads = config.heads
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        query = self.dialect.rotary(op, self.q_proj(op, x), angles.cos, angles.sin, self.heads.num)
        key = self.dialect.rotary(op, self.k_proj(op, x), angles.cos, angles.sin, self.heads.num)
        return self.o_proj(op, self.dialect.attention(op, query, key, self.v_proj(op, x), self.heads, None))


class _Layer(Module):
    def __init__(self, config: PixtralConfig, dialect: Dialect) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, _EPS, dialect)
        self.attention = _Attention(config, dialect)
        self.ffn_norm = RMSNorm(config.hidden_size, _EPS, dialect)
        self.feed_forward = GatedMLP(config, rows=config.usual_rows)

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        x = op.Add(x, self.attention(op, self.attention_norm(op, x), angles))
        return op.Add(x, self.feed_forward(op, self.ffn_norm(op, x)))


class _Layers(Module):
    def __init__(self, config: PixtralConfig, dialect: Dialect) -> None:
        super().__init__()
        self.layers = ModuleList([_Layer(config, dialect) for _ in range(config.num_layers)])

    def forward(self, op: OpBuilder, x: ir.Value, angles: Angles) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x, angles)
        return x


class PixtralTower(Module):
    """Pixels to patches, and layers over them, without a norm behind the last.

    Args:
        config: Sizes.
        dialect: How attention and norms are written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: PixtralConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_conv = StillPatches(config.hidden_size, config.patch_px, bias=False)
        self.ln_pre = RMSNorm(config.hidden_size, _EPS, dialect)
        self.transformer = _Layers(config, dialect)
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, Grid]:
        """Return [I, N, D] of N patches, row by row, and their grid, from [I, 3, height, width]."""
        x, grid = self.patch_conv(op, pixel_values)
        angles = alternating_patch_angles(op, x, grid, self.config.heads.size, self.config.theta)
        return self.transformer(op, self.ln_pre(op, x), angles), grid
