"""What there is to plan in a graph: its weight-carrying layers, their sizes, and what export's labels say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.manifest import ComponentName
from graphs.experts import Experts, find_experts
from graphs.labels import Label, LayerRole
from graphs.layers import Linear, Table, find_linears, find_tables

_Layer = TypeVar("_Layer", Linear, Table)

Kind = LayerRole | Literal["ternary experts"]
"""Ternary experts hold nothing but -a, 0 and a, which is seen from their numbers; the rest is what export says."""


@dataclass(frozen=True)
class Site:
    """A layer that is to be planned.

    Attributes:
        name: Its weight's.
        kind: What it does.
        num_inputs: K of a linear layer or of one expert, D of a table.
        num_outputs: N of a linear layer or of one expert's three matrices, V of a table.
        rows: That meet it for one image or one text; None in a decoder, where prompt and step decide.
        copies: Experts; else 1.
        num_hidden: Hidden units of one expert, which blocks must divide too; else 0.
    """

    name: str
    kind: Kind
    num_inputs: int
    num_outputs: int
    rows: int | None = None
    copies: int = 1
    num_hidden: int = 0

    @property
    def is_table(self) -> bool:
        """Return whether rows are looked up, not multiplied."""
        return self.kind in ("table", "tied table", "constant table")


def survey_bundle(graphs: Mapping[ComponentName, ir.Graph]) -> dict[ComponentName, tuple[Site, ...]]:
    """Return the layers of all graphs.

    Raises:
        QuantizationError: No graph has layers, or they have no labels.
    """
    sites = {name: survey(graph) for name, graph in graphs.items()}
    if not any(sites.values()):
        raise QuantizationError(
            f"{', '.join(sites)}: no linear layer or embedding table was found; nothing can be made smaller"
        )
    return sites


def survey(graph: ir.Graph) -> tuple[Site, ...]:
    """Return the layers of a graph, linear ones first, each weight once; a tower of convolutions has none.

    Raises:
        QuantizationError: They have no labels.
    """
    linears = [_linear_site(linear) for linear in _distinct(find_linears(graph))]
    experts = [_experts_site(each) for each in find_experts(graph)]
    tables = [_table_site(table) for table in _distinct(find_tables(graph))]
    return (*linears, *experts, *tables)


def _linear_site(linear: Linear) -> Site:
    label = Label.read(linear.weight)
    return Site(linear.name, label.role, linear.num_inputs, linear.num_outputs, label.rows)


def _experts_site(experts: Experts) -> Site:
    label = Label.read(experts.first)
    kind: Kind = "ternary experts" if experts.is_ternary else label.role
    size = experts.num_inputs, 3 * experts.width
    return Site(experts.name, kind, *size, copies=experts.num_experts, num_hidden=experts.width)


def _table_site(table: Table) -> Site:
    return Site(table.name, Label.read(table.weight).role, table.width, table.num_rows)


def _distinct(layers: list[_Layer]) -> list[_Layer]:
    """Return one layer of each weight."""
    return list({layer.name: layer for layer in layers}.values())
