"""Attention whose keys are wider than its values by what a run tells, written down for parsers that want both alike."""

from __future__ import annotations

import onnx_ir as ir

_WIDE_KEYS = "pocketvlm.wide_keys"


def note_wide_keys(attended: ir.Value) -> None:
    """Write down that the attention which made a value has keys of more numbers a head than its values have."""
    node = attended.producer()
    if node is None:
        raise ValueError(f"{attended.name} is made by no node")
    node.metadata_props[_WIDE_KEYS] = "true"


def has_wide_keys(attention: ir.Node) -> bool:
    """Return whether that was written down."""
    return _WIDE_KEYS in attention.metadata_props
