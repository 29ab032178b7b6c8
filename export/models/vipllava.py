"""ViP-LLaVA (arXiv 2312.00784): LLaVA-1.5 whose connector norms what several layers of the tower give."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, require
from export.connectors.projector import Projector
from export.models.llava import PROJECTOR, Llava
from export.nn.module import Module
from export.nn.norms import LayerNorm

_LAYERS = (-2, -5, -8, -11, 6)


class _NormedProjector(Projector):
    """A norm, then two matrices with an activation between."""

    def __init__(self, in_size: int, out_size: int, hidden_act: str, eps: float, *, rows: int) -> None:
        super().__init__(in_size, out_size, hidden_act, rows=rows, bias=True, name=PROJECTOR)
        self.projector_layernorm = LayerNorm(in_size, eps)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [..., out_size] from [..., in_size]."""
        return super().forward(op, self.projector_layernorm(op, x))


class VipLlava(Llava):
    """`model_type` vipllava; marks that people draw on an image are part of it."""

    def __init__(self, config: Raw) -> None:
        # transformers' model leaves out the first row whatever a tower has there, which is CLIP's class token
        require(config.get("vision_config") or {}, [("model_type", "clip_vision_model")])
        require(config, [("vision_feature_select_strategy", "default"), ("mm_projector_type", "mlp2x_gelu")])
        layers = config.get("vision_feature_layer", config.get("vision_feature_layers", _LAYERS))
        super().__init__({**config, "vision_feature_layer": layers})

    def projector(self) -> Module:
        """Return the connector."""
        eps, act = self.config.get("projector_layernorm_eps", 1e-5), self.config.get("projector_hidden_act", "gelu")
        in_size, size = self._vision.tower.hidden_size * len(self._layers), self.decoder.config.hidden_size
        return _NormedProjector(in_size, size, act, float(eps), rows=self.tokens_per_tile)
