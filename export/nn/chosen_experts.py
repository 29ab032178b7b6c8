"""Experts of which each vector of a tower meets a few: the most probable ones, by their shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from export.tower_experts import TowerExperts


def chosen_shares(op: OpBuilder, logits: ir.Value, num: int, per_token: int, *, is_normalised: bool) -> ir.Value:
    """Return what each expert counts for, [B, T, E], 0 where it was not chosen.

    Args:
        op: The builder.
        logits: The router's scores, [B, T, E].
        num: E.
        per_token: Chosen for each row.
        is_normalised: By the softmax over the chosen, which is that over all divided by the sum of theirs; else by
            that over all.
    """
    scores = logits if is_normalised else op.Softmax(logits, axis=-1)
    highest, numbers = op.TopK(scores, [per_token], axis=-1, _outputs=2)
    of_chosen = op.Softmax(highest, axis=-1) if is_normalised else highest
    experts = op.Constant(value=ir.tensor(np.arange(num)))
    is_chosen = op.Equal(op.Unsqueeze(numbers, [-1]), experts)
    return op.ReduceSum(op.Where(is_chosen, op.Unsqueeze(of_chosen, [-1]), 0.0), [-2], keepdims=0)


class ChosenExperts(Module):
    """Feed-forwards in the place of one.

    No expert has a capacity: capacities bound what a step of training sends to each, and tokens beyond them would hang
    on what else is in a batch.

    Args:
        size: D.
        sizes: Of the mixture.
        experts: Feed-forwards of [..., D] to [..., D].
        dialect: How experts are met.
        rows: Vectors of one image or of the longest text.
    """

    def __init__(
        self, size: int, sizes: TowerExperts, experts: Sequence[Module], dialect: Dialect, *, rows: int
    ) -> None:
        super().__init__()
        self.router = Linear(size, sizes.num, rows=rows, role="router", bias=False)
        self.experts = ModuleList(list(experts))
        self.sizes, self.dialect = sizes, dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, T, D] from [B, T, D]."""
        sizes = self.sizes
        shares = chosen_shares(op, self.router(op, x), sizes.num, sizes.per_token, is_normalised=sizes.is_normalised)
        return self.dialect.by_expert(op, x, shares, [applied(op, expert) for expert in self.experts])


def applied(op: OpBuilder, expert: Module) -> Callable[[ir.Value], ir.Value]:
    """Return an expert as a function of rows."""

    def of_rows(rows: ir.Value) -> ir.Value:
        made: ir.Value = expert(op, rows)
        return made

    return of_rows
