"""What policies choose a prompt's rows by, dropped where no prompt runs or nobody chooses.

q ── RotaryEmbedding ─┬─ attention
                      └─ Slice ── last_queries.0        ->        q ── RotaryEmbedding ── attention
"""

from __future__ import annotations

import onnx_ir as ir

from bundle import tensors
from bundle.manifest import Component
from graphs.store import drop_unused


def drop_last_queries(model: ir.Model) -> None:
    """Drop the queries that a decoder gives, in place."""
    outputs = model.graph.outputs
    for value in [value for value in outputs if str(value.name).startswith(tensors.LAST_QUERIES)]:
        outputs.remove(value)
    drop_unused(model)


def without_last_queries(component: Component) -> Component:
    """Return what a decoder gives once they are dropped."""
    kept = [spec for spec in component.optional_outputs if not spec.name.startswith(tensors.LAST_QUERIES)]
    return component.model_copy(update={"optional_outputs": tuple(kept)})
