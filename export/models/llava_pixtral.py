"""LLaVA checkpoints with Pixtral's tower (mistral-community's Pixtral 12B): a token a patch, rows that end."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.connectors.projector import Projector
from export.models.mistral3 import PROJECTOR, TOWER, PixtralModel
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.pixtral import PixtralConfig, PixtralTower

_DEFAULTS: Raw = {
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


class _Vision(Module):
    def __init__(self, tower: PixtralConfig, dialect: Dialect, projector: Module) -> None:
        super().__init__()
        self.tower = PixtralTower(tower, dialect, TOWER)
        self.projector = projector

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, _ = self.tower(op, pixel_values)
        return self.projector(op, patches)


class LlavaPixtral(PixtralModel):
    """`model_type` llava with `vision_config.model_type` pixtral."""

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config, "spatial_merge_size": 1})
        strategy = self.config["vision_feature_select_strategy"]
        if strategy != "full":
            raise UnsupportedConfigError(
                f"vision_feature_select_strategy {strategy!r}: Pixtral's tower has no class token to drop; built is "
                "'full'"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and LLaVA's two layers."""
        config, tower = self.config, self.tower
        projector = Projector(
            tower.hidden_size,
            self.decoder.config.hidden_size,
            config["projector_hidden_act"],
            rows=tower.usual_rows,
            bias=bool(config["multimodal_projector_bias"]),
            name=PROJECTOR,
        )
        return _Vision(tower, dialect, projector)
