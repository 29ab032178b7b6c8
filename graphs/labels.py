"""What export knows of a layer, written beside its weight: what the layer does, and how many rows meet it.

Labels are metadata of the initializer (`ValueInfoProto.metadata_props`), which a runtime passes over and which outlives
saving and loading. That of a tensor is lost there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import onnx_ir as ir

from bundle.errors import QuantizationError
from graphs.experts import find_experts
from graphs.layers import find_linears, find_tables

LayerRole = Literal["linear", "head", "router", "gate", "adapter", "experts", "table", "tied table", "constant table"]
"""A head gives the vocabulary's scores, a router the experts', a gate how much a recurrence forgets, and an
adapter changes what another layer gives; a constant table
is looked up with ids that the graph holds itself, and a tied one holds the head's numbers."""

_ROLE, _ROWS = "pocketvlm.role", "pocketvlm.rows"


@dataclass(frozen=True)
class Label:
    """What a layer is; written by export, read by whoever plans.

    Attributes:
        role: What it does.
        rows: That a linear layer multiplies for one image or one text; None in a decoder, where prompt and step
            decide, and for tables.
    """

    role: LayerRole
    rows: int | None = None

    def write(self, weight: ir.Value) -> None:
        """Put the label on a layer's initializer, in the place of any that it has."""
        weight.metadata_props[_ROLE] = self.role
        weight.metadata_props.pop(_ROWS, None)
        if self.rows is not None:
            weight.metadata_props[_ROWS] = str(self.rows)

    @classmethod
    def try_read(cls, weight: ir.Value) -> Label | None:
        """Return the label of an initializer; None where it has none.

        Raises:
            QuantizationError: A label that this version does not know.
        """
        role, rows = (weight.metadata_props.get(key) for key in (_ROLE, _ROWS))
        if role is None:
            return None
        known = get_args(LayerRole)
        if role not in known or not (rows is None or rows.isdecimal()):
            raise QuantizationError(
                f"{weight.name} is labelled {role!r} with rows {rows!r}; known are {', '.join(known)}, with a whole "
                "number of rows or none. It was exported by another version; export the checkpoint again"
            )
        return cls(cast(LayerRole, role), None if rows is None else int(rows))

    @classmethod
    def read(cls, weight: ir.Value) -> Label:
        """Return the label of a layer's initializer.

        Raises:
            QuantizationError: It has none, or one that this version does not know.
        """
        label = cls.try_read(weight)
        if label is None:
            raise QuantizationError(
                f"{weight.name} holds no layer labels: it was exported by an older version; export the checkpoint again"
            )
        return label


def unlabelled(graph: ir.Graph) -> list[str]:
    """Return the names of weights that layers of the graph read and that have no label."""
    weights = [linear.weight for linear in find_linears(graph)] + [table.weight for table in find_tables(graph)]
    weights += [weight for experts in find_experts(graph) for weight in (experts.first, experts.second)]
    return sorted({str(weight.name) for weight in weights if Label.try_read(weight) is None})
