"""What towers over images of any shape share (Qwen-VL's and GLM's): their sizes, and layers over turned patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, require
from export.nn.dialect import Heads
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.patches import PackedAttention, usual_patches
from export.nn.rotary import Angles


@dataclass(frozen=True)
class PatchTowerConfig:
    """Sizes of a tower.

    Attributes:
        num_layers: Depth.
        hidden_size: D.
        intermediate_size: Of the feed-forward.
        hidden_act: Between its matrices, or of its gate.
        num_heads: H.
        patch_px: Side of a patch.
        num_frames: Frames that the checkpoint's patches span; a still image is as many times itself.
        merged: Side of the square of patches that becomes one token.
        out_size: The decoder's width.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    hidden_act: str
    num_heads: int
    patch_px: int
    num_frames: int
    merged: int
    out_size: int

    @property
    def heads(self) -> Heads:
        """Of every layer."""
        size = self.hidden_size // self.num_heads
        return Heads(self.num_heads, self.num_heads, size, float(size) ** -0.5)

    @property
    def usual_rows(self) -> int:
        """Patches of a usual image."""
        return usual_patches(self.patch_px)


def patch_tower_sizes(full: Raw) -> dict[str, Any]:
    """Return the fields of `PatchTowerConfig` as a vision config states them, its defaults filled in.

    Raises:
        UnsupportedConfigError: Images are not of three channels.
    """
    require(full, [("in_channels", 3)])
    return {
        "num_layers": full["depth"],
        "hidden_size": full["hidden_size"],
        "intermediate_size": full["intermediate_size"],
        "hidden_act": full["hidden_act"],
        "num_heads": full["num_heads"],
        "patch_px": full["patch_size"],
        "num_frames": full["temporal_patch_size"],
        "merged": full["spatial_merge_size"],
        "out_size": full["out_hidden_size"],
    }


class PatchMLP(Module):
    """Two matrices, and what is between them.

    Args:
        config: Sizes.
        first: Of the matrices' names in the checkpoint.
        second: The other.
    """

    def __init__(self, config: PatchTowerConfig, first: str, second: str) -> None:
        super().__init__()
        self.first = Linear(config.hidden_size, config.intermediate_size, rows=config.usual_rows, name=first)
        self.second = Linear(config.intermediate_size, config.hidden_size, rows=config.usual_rows, name=second)
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, N, D] from [I, N, D]."""
        return self.second(op, activation(op, self.hidden_act, self.first(op, x)))


class PatchBlock(Module):
    """A layer: attention and a feed-forward, each behind a norm.

    Args:
        norms: The two.
        attn: Attention.
        mlp: The feed-forward.
    """

    def __init__(self, norms: tuple[Module, Module], attn: PackedAttention, mlp: Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attn = attn
        self.mlp = mlp

    def forward(
        self, op: OpBuilder, x: ir.Value, angles: Angles, window: int | None = None, bias: ir.Value | None = None
    ) -> ir.Value:
        """Return [I, N, D] from [I, N, D], within windows of so many patches where that is given."""
        x = op.Add(x, self.attn(op, self.norm1(op, x), angles, window, bias))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))
