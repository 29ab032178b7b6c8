"""Modules one behind another."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.module import Module


class Chain(Module):
    """A tower and the connector behind it, which is given all that the tower gives.

    Args:
        tower: From pixels; it has a name of its own, as the connector has: the checkpoint knows of no chain.
        connector: From what the tower gives, one value or several.
        name: "" within another module, so that both keep their names.
    """

    def __init__(self, tower: Module, connector: Module, name: str | None = None) -> None:
        super().__init__(name)
        self.tower = tower
        self.connector = connector

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return what the connector makes of pixels [I, 3, height, width]."""
        seen = self.tower(op, pixel_values)
        return self.connector(op, *seen) if isinstance(seen, tuple) else self.connector(op, seen)
