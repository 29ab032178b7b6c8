"""DeepSeek-VL 7B (arXiv 2403.05525): SAM's tower on a large square, SigLIP's on a small one, and a Llama."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.image import Beside, ImageSpec
from bundle.manifest import ComponentName, TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.family import GraphPlan
from export.image_processors.deepseek_vl_hybrid import DEEPSEEK_VL_HYBRID
from export.models.deepseek_vl import DeepSeekVL, NormedTower
from export.nn.convolution import Convolution
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.tower_view import tower_view
from export.nn.vit import tower_heads
from export.towers.got_ocr2 import GotTower, GotTowerConfig, Neck

_MLP_RATIO = 4.0
_HALVINGS = 2


class _LargeTower(GotTower):
    """SAM's tower, which tells what its first global layer gives as well."""

    def __init__(self, config: GotTowerConfig, dialect: Dialect, name: str) -> None:
        super().__init__(config, dialect, name)
        self.first_global = config.global_layers[0]

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return [I, channels, grid, grid] behind the neck, and [I, D, grid, grid] of that layer."""
        states = self.passed(op, pixel_values)
        deep = self.squared(op, states[self.first_global + 1], self.grid)
        return self.neck(op, self.squared(op, states[-1], self.grid)), deep


class _Shrunk(Module):
    """A square scaled to four times the small tower's grid, then halved twice by convolutions."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__("model.high_res_vision_proj")
        self.conv1 = Convolution(channels, 2 * channels, 3, stride=2, bias=False)
        self.conv2 = Convolution(2 * channels, 4 * channels, 3, stride=2, bias=False)
        self.side = grid << _HALVINGS

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, 4 * channels, grid, grid]."""
        sizes = op.Concat(op.Shape(x, start=0, end=2), [self.side, self.side], axis=0)
        scaled = op.Resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        return self.conv2(op, self.conv1(op, scaled))


class _Aligner(Module):
    def __init__(self, small: int, large: int, out_size: int, *, rows: int) -> None:
        super().__init__("model.aligner")
        self.vision_proj = Linear(small, out_size // 2, rows=rows)
        self.high_res_vision_proj = Linear(large, out_size // 2, rows=rows)
        self.proj = Linear(out_size, out_size, rows=rows)

    def forward(self, op: OpBuilder, small: ir.Value, large: ir.Value) -> ir.Value:
        both = op.Concat(self.high_res_vision_proj(op, large), self.vision_proj(op, small), axis=2)
        return self.proj(op, op.Gelu(both))


class _Vision(Module):
    """Both towers on the two squares of a canvas.

    Args:
        small: SigLIP's sizes.
        large: SAM's.
        colours: [2, 3] by which pixels of the small square are multiplied, and what is added then.
        out_size: The decoder's.
        dialect: How attention is written.
    """

    def __init__(
        self, small: VisionConfig, large: GotTowerConfig, colours: np.ndarray, out_size: int, dialect: Dialect
    ) -> None:
        super().__init__()
        channels, width = large.num_channels, small.tower.hidden_size
        self.large = _LargeTower(large, dialect, "model.high_res_vision_model.vision_encoder")
        self.neck = Neck(large, name="model.high_res_vision_neck")
        self.shrunk = _Shrunk(channels, small.grid)
        self.alpha = Weight(1, name="model.high_res_vision_alpha")
        self.small = NormedTower(small, dialect)
        self.aligner = _Aligner(width, 4 * channels, out_size, rows=small.grid**2)
        self.heads = tower_heads(small.tower)
        self.sides = (large.vision.image_size_px, small.image_size_px)
        self.colours = colours

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, ...]:
        side, small_side = self.sides
        large = op.Slice(pixel_values, [0], [side], [3])
        beside = op.Slice(pixel_values, [0, side], [small_side, side + small_side], [2, 3])
        factor, shift = (
            op.initializer(ir.tensor(each.reshape(1, 3, 1, 1)), f"small_square_{name}")
            for each, name in zip(self.colours, ("factor", "shift"), strict=True)
        )
        passed = self.small(op, op.Add(op.Mul(beside, factor), shift))
        aligned = self.aligner(op, passed.states[-1], self._large_features(op, large))
        return aligned, *tower_view(op, passed.looks[-1], self.heads, has_class_token=False)

    def _large_features(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, N, channels]: the last layer's, and the first global layer's by its learned share."""
        last, deep = self.large(op, pixel_values)
        deep = self.shrunk(op, self.neck(op, deep))
        both = op.Add(self.shrunk(op, last), op.Mul(deep, self.alpha))
        return op.Transpose(op.Reshape(both, [0, 0, -1]), perm=[0, 2, 1])


class DeepSeekVLHybrid(DeepSeekVL):
    """`model_type` deepseek_vl_hybrid."""

    image_processor = "DeepseekVLHybridImageProcessor"
    reads_image_settings: ClassVar[bool] = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        raw = sub_config(config, "high_res_vision_config")
        inner = raw.get("mlp_dim") or int(raw.get("hidden_size", 768) * raw.get("mlp_ratio", _MLP_RATIO))
        self.large_config = GotTowerConfig.read({**raw, "mlp_dim": inner})
        if not self.large_config.global_layers:
            raise UnsupportedConfigError(
                "high_res_vision_config.global_attn_indexes is empty; what its first layer gives is a part of features"
            )

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images are the two squares that the towers take.

        Raises:
            UnsupportedConfigError: They are not.
        """
        wanted = (self.large_config.vision.image_size_px, self.image_size_px)
        found = spec.geometry
        if not isinstance(found, Beside) or (found.side_px, found.small_px) != wanted:
            raise UnsupportedConfigError(
                f"the processor makes images by {found}; the towers take squares of {wanted[0]} and {wanted[1]} pixels"
            )

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the three graphs, the first of which takes canvases."""
        plans, side = super().graphs(dialect), self.large_config.vision.image_size_px
        shape = ("I", 3, side, side + self.image_size_px)
        canvas = TensorSpec(name=tensors.PIXEL_VALUES, dtype="float32", shape=shape)
        return {**plans, "vision_encoder": replace(plans["vision_encoder"], inputs=(canvas,))}

    def vision(self, dialect: Dialect) -> Module:
        """Return both towers and the connector."""
        size = self.decoder.config.hidden_size
        return _Vision(self.tower_config, self.large_config, self._colours(), size, dialect)

    def _colours(self) -> np.ndarray:
        """Return [2, 3] float32: pixels normalised as the large square's to those of the small one's."""
        stated = {key: value for key, value in self.stated_images.items() if value is not None}
        full = {**DEEPSEEK_VL_HYBRID.defaults, **stated}
        names = ("high_res_image_mean", "high_res_image_std", "image_mean", "image_std")
        mean, std, small_mean, small_std = (np.array(full[name], np.float64) for name in names)
        return np.stack([std / small_std, (mean - small_mean) / small_std]).astype(np.float32)
