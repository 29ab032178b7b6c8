"""Whether a bundle gives a policy what it needs."""

from __future__ import annotations

from bundle import tensors
from bundle.manifest import Manifest
from bundle.states import layers_of
from quant.kv.table import POLICIES, entry_of


def missing(policy: str, manifest: Manifest) -> str:
    """Return what a bundle lacks for a policy, and what to do about it; empty where it lacks nothing.

    Raises:
        ParameterError: There is no such policy.
    """
    entry, name = entry_of(policy), manifest.name
    if kinds := {state.kind for state in manifest.states} - {"rows"}:
        return f"{name} has states of kind {', '.join(sorted(kinds))}, which hold no rows to choose from; leave kv out"
    if manifest.decoder is not None and (window := manifest.decoder.window_tokens) is not None:
        return (
            f"layers of {name} see windows of {window} rows, which would count past those that are dropped; "
            "leave kv out"
        )
    layers = layers_of(manifest.states)
    if not layers:
        return f"{name} does not say which of its states are keys and values; export the checkpoint again"
    if dtypes := {state.dtype for state in manifest.states if state.scheme == "float"} - {"float32"}:
        return f"{name} keeps {', '.join(sorted(dtypes))} in its cache; policies read float32, int8 and int4"
    given = {spec.name for spec in manifest.components[manifest.graph("decoder", "prompt")].optional_outputs}
    if entry.needs_queries and not given.issuperset(f"{tensors.LAST_QUERIES}{at}" for at in range(len(layers))):
        others = ", ".join(other for other, its in POLICIES.items() if not its.needs_queries)
        return f"{name} gives no {tensors.LAST_QUERIES}*: export the checkpoint again, or take one of {others}"
    if entry.has_layer_budgets and manifest.num_length_groups == 1:
        others = ", ".join(other for other, its in POLICIES.items() if not its.has_layer_budgets)
        return (
            f"all layers of {name} are of one length group and keep as many rows as one another: export the checkpoint "
            f"with --length-groups, or take one of {others}"
        )
    return ""


def offered_policies(manifest: Manifest) -> tuple[str, ...]:
    """Return the policies that a request may name on a CPU; none of a model without a decoder."""
    if manifest.decoder is None:
        return ()
    return tuple(name for name in POLICIES if not missing(name, manifest))
