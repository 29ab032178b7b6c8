"""What some reducers read of a vision tower, dropped where a runtime would compute it in every run.

q, k ─┬─ attention
      └─ MatMul ─ Softmax ─ ... ── image_attention, image_keys        ->        q, k ── attention
"""

from __future__ import annotations

import onnx_ir as ir

from bundle.image_tokens import TOWER_OUTPUTS
from bundle.manifest import Component
from graphs.store import drop_unused


def drop_tower_view(model: ir.Model) -> None:
    """Drop what a vision encoder tells of its tower's attention, in place."""
    outputs = model.graph.outputs
    for value in [value for value in outputs if value.name in TOWER_OUTPUTS]:
        outputs.remove(value)
    drop_unused(model)


def without_tower_view(component: Component) -> Component:
    """Return what a vision encoder gives once that is dropped."""
    kept = [spec for spec in component.optional_outputs if spec.name not in TOWER_OUTPUTS]
    return component.model_copy(update={"optional_outputs": tuple(kept)})
