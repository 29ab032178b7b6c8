"""Qwen3-VL's vision tower (arXiv 2511.21631): Qwen2-VL's, with learned positions, and features of several layers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.connectors.patch_merger import merged_squares
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, PackedAttention, VideoPatches, patch_angles
from export.nn.position_grid import PositionGrid
from export.towers.patch_layers import PatchBlock, PatchMLP, PatchTowerConfig, patch_tower_sizes

DEFAULTS: Raw = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
}
_EPS = 1e-6


@dataclass(frozen=True)
class Qwen3VLTowerConfig(PatchTowerConfig):
    """Sizes of the tower.

    Attributes:
        table_side: Of the square of learned positions.
        deep_layers: Layers whose output becomes features, too.
    """

    table_side: int
    deep_layers: tuple[int, ...]

    @classmethod
    def read(cls, raw: Raw) -> Qwen3VLTowerConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: A size that is not built.
        """
        full = {**DEFAULTS, **raw}
        deep, side = tuple(full["deepstack_visual_indexes"]), int(full["num_position_embeddings"] ** 0.5)
        if list(deep) != sorted(set(deep)) or any(not 0 <= layer < full["depth"] for layer in deep):
            raise UnsupportedConfigError(
                f"vision_config.deepstack_visual_indexes {list(deep)}: the tower has the layers 0 to "
                f"{full['depth'] - 1}; each at most once, rising"
            )
        if side**2 != full["num_position_embeddings"]:
            raise UnsupportedConfigError(
                f"vision_config.num_position_embeddings {full['num_position_embeddings']} is no square of a number"
            )
        return cls(**patch_tower_sizes(full), table_side=side, deep_layers=deep)


def _block(config: Qwen3VLTowerConfig, dialect: Dialect) -> PatchBlock:
    norms = LayerNorm(config.hidden_size, _EPS), LayerNorm(config.hidden_size, _EPS)
    attention = PackedAttention(config.hidden_size, config.heads, dialect, rows=config.usual_rows)
    return PatchBlock(norms, attention, PatchMLP(config, "linear_fc1", "linear_fc2"))


class _Merger(Module):
    """Squares of patches to the decoder's width, normed before or after they are put together."""

    def __init__(self, config: Qwen3VLTowerConfig, *, norms_squares: bool) -> None:
        super().__init__()
        wide, rows = config.hidden_size * config.merged**2, config.usual_rows // config.merged**2
        self.norm = LayerNorm(wide if norms_squares else config.hidden_size, _EPS)
        self.linear_fc1 = Linear(wide, wide, rows=rows)
        self.linear_fc2 = Linear(wide, config.out_size, rows=rows)
        self.norms_squares = norms_squares
        self.config = config

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        x = x if self.norms_squares else self.norm(op, x)
        squares = merged_squares(op, x, grid, self.config.hidden_size, self.config.merged)
        squares = self.norm(op, squares) if self.norms_squares else squares
        return self.linear_fc2(op, op.Gelu(self.linear_fc1(op, squares)))


class Qwen3VLTower(Module):
    """Pixels to rows of features, those of the last layer and behind them those of the deep ones.

    Args:
        config: Sizes.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: Qwen3VLTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.patch_embed = VideoPatches(config.hidden_size, config.patch_px, config.num_frames, bias=True)
        self.pos_embed = PositionGrid(config.table_side, config.hidden_size, aligns_corners=True)
        self.blocks = ModuleList([_block(config, dialect) for _ in range(config.num_layers)])
        self.merger = _Merger(config, norms_squares=False)
        self.deepstack_merger_list = ModuleList([_Merger(config, norms_squares=True) for _ in config.deep_layers])
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, P, (1 + n) * out_size] from [I, 3, height, width], n being the number of deep layers."""
        x, grid = self.patch_embed(op, pixel_values)
        angles = patch_angles(op, x, grid, self.config.heads.size)
        x, deep = self.pos_embed(op, x, grid), list[ir.Value]()
        mergers = dict(zip(self.config.deep_layers, self.deepstack_merger_list, strict=True))
        for number, block in enumerate(self.blocks):
            x = block(op, x, angles)
            if number in mergers:
                deep.append(mergers[number](op, x, grid))
        last = self.merger(op, x, grid)
        return op.Concat(last, *deep, axis=2) if deep else last
