"""A token table that is tied to the output matrix, kept in the form of that, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bundle.form import Form
from bundle.manifest import ComponentName
from quant.planning.plan import KEPT, ComponentPlan, LayerPlan


def with_head(plans: Mapping[ComponentName, ComponentPlan]) -> dict[ComponentName, ComponentPlan]:
    """Return the plans with a tied table in the form that its head has now, so that both are stored once."""
    tables = plans.get("embed_tokens")
    if tables is None or "decoder" not in plans:
        return dict(plans)
    heads = {layer.name: layer.choice.form for layer in plans["decoder"].layers}
    layers = tuple(_in_form(layer, heads[layer.head]) if layer.head in heads else layer for layer in tables.layers)
    return {**plans, "embed_tokens": replace(tables, layers=layers)}


def _in_form(table: LayerPlan, form: Form | None) -> LayerPlan:
    """Return a table in a form; as exported, and stored by itself, where its head is."""
    if form is None:
        return replace(table, choice=KEPT, is_shared=False)
    return replace(table, choice=replace(table.choice, form=form))
