"""What there is to plan in a graph: its weight-carrying layers, their sizes, and how many rows meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeVar

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.manifest import ComponentName, Manifest
from graphs.experts import Experts, find_experts
from graphs.layers import Linear, Table, find_linears, find_tables

_Layer = TypeVar("_Layer", Linear, Table)
_ROUTER = ".router.weight"
"""Ends the name of the layer that chooses experts, in both dialects (export/nn/moe.py)."""

_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}

Kind = Literal["linear", "head", "router", "experts", "ternary experts", "table", "tied table", "constant table"]
"""A head gives the vocabulary's scores, a router the experts'; ternary experts hold nothing but -a, 0 and a; a constant
table is looked up with ids that the graph holds itself, and a tied one holds the head's weights."""


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


def survey_bundle(
    graphs: Mapping[ComponentName, ir.Graph], manifest: Manifest
) -> dict[ComponentName, tuple[Site, ...]]:
    """Return the layers of all graphs; a token table that is the head's matrix too is known as tied.

    Raises:
        QuantizationError: A graph has no layers.
    """
    sites = {name: survey(name, graph, manifest) for name, graph in graphs.items()}
    heads = [site.name for site in sites.get("decoder", ()) if site.kind == "head"]
    if "embed_tokens" not in sites or not heads:
        return sites
    head = next(linear for linear in find_linears(graphs["decoder"]) if linear.name == heads[0])
    tied = {table.name for table in find_tables(graphs["embed_tokens"]) if np.array_equal(table.rows(), head.rows())}
    tables = (replace(site, kind="tied table") if site.name in tied else site for site in sites["embed_tokens"])
    return {**sites, "embed_tokens": tuple(tables)}


def survey(component: ComponentName, graph: ir.Graph, manifest: Manifest) -> tuple[Site, ...]:
    """Return the layers of a graph, linear ones first, each weight once.

    Raises:
        QuantizationError: There are none.
    """
    found = _distinct(find_linears(graph))
    if component == "decoder":
        linears = [*(_decoder_site(linear, manifest) for linear in found), *map(_experts_site, find_experts(graph))]
    else:
        linears = _encoder_sites(found, component, graph, manifest)
    tables = [
        Site(table.name, "table" if table.ids in graph.inputs else "constant table", table.width, table.num_rows)
        for table in _distinct(find_tables(graph))
    ]
    if not linears and not tables:
        raise QuantizationError(
            f"{component}: no linear layer or embedding table was found; nothing can be made smaller"
        )
    return (*linears, *tables)


def _decoder_site(linear: Linear, manifest: Manifest) -> Site:
    kind: Kind = "linear"
    if manifest.decoder is not None and linear.num_outputs == manifest.decoder.vocab_size:
        kind = "head"
    elif linear.name.endswith(_ROUTER):
        kind = "router"
    return Site(linear.name, kind, linear.num_inputs, linear.num_outputs)


def _experts_site(experts: Experts) -> Site:
    kind: Kind = "ternary experts" if experts.is_ternary else "experts"
    size = experts.num_inputs, 3 * experts.width
    return Site(experts.name, kind, *size, copies=experts.num_experts, num_hidden=experts.width)


def _encoder_sites(linears: list[Linear], component: ComponentName, graph: ir.Graph, manifest: Manifest) -> list[Site]:
    """Return sites with their rows: a tower's own until its last norm, then those of its features."""
    tower_rows = _num_patches(graph)
    if component == "text_encoder" and manifest.dual is not None:
        tower_rows = manifest.dual.max_text_tokens
    feature_rows = manifest.image_prompt.tokens_per_tile if manifest.image_prompt else 1
    places = {node: at for at, node in enumerate(graph)}
    last_norm = max((at for node, at in places.items() if node.op_type in _NORMS), default=len(places))
    return [
        Site(
            linear.name,
            "linear",
            linear.num_inputs,
            linear.num_outputs,
            feature_rows if places[linear.node] > last_norm else tower_rows,
        )
        for linear in linears
    ]


def _num_patches(graph: ir.Graph) -> int:
    """Return into how many patches the graph's first convolution cuts an image; 1 where its sizes are not fixed."""
    pixels = graph.inputs[0].shape
    patches = next((node for node in graph if node.op_type == "Conv"), None)
    if pixels is None or patches is None or "strides" not in patches.attributes:
        return 1
    strides = patches.attributes["strides"].as_ints()
    sides = [size for size in tuple(pixels)[-len(strides) :] if isinstance(size, int)]
    return (
        prod(side // stride for side, stride in zip(sides, strides, strict=True)) if len(sides) == len(strides) else 1
    )


def _distinct(layers: list[_Layer]) -> list[_Layer]:
    """Return one layer of each weight."""
    return list({layer.name: layer for layer in layers}.values())
