"""A gated delta rule in ONNX Runtime's operator or in standard ones.

Yang et al., "Gated Delta Networks" (arXiv 2412.06464): a token forgets a part of what a head's state holds, reads what
the rest says of its key, and writes the difference to its value:

    S = exp(g) S;  S = S + k (b (v - S^T k))^T;  o = S^T q / sqrt(C)

No row of a batch knows how long another is: runs of the engine have one length (runtime.feeds), so nothing is padded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from export.nn.scanned import DeltaChunks, chunked_delta_rule
from graphs.store import CONTRIB


@dataclass(frozen=True)
class DeltaHeads:
    """Sizes of a gated delta rule.

    Attributes:
        num_keys: Heads of queries and keys.
        num_values: Heads of values, a multiple of the former: neighbours share a query and a key.
        key_size: Of a query and a key.
        value_size: Of a value.
    """

    num_keys: int
    num_values: int
    key_size: int
    value_size: int

    @property
    def keys_width(self) -> int:
        """Of all keys of a token."""
        return self.num_keys * self.key_size

    @property
    def values_width(self) -> int:
        """Of all values of a token."""
        return self.num_values * self.value_size

    @property
    def mixed_width(self) -> int:
        """Of all queries, keys and values of a token, side by side."""
        return 2 * self.keys_width + self.values_width


@dataclass(frozen=True)
class DeltaTokens:
    """What a run's tokens bring to a gated delta rule.

    Attributes:
        query: [B, T, num_keys * key_size], each head of length 1.
        key: The same.
        value: [B, T, num_values * value_size].
        decay: [B, T, num_values], the logarithm of what stays of the state; 0 at most.
        update: [B, T, num_values], which part of the difference is written, 0 to 1.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    decay: ir.Value
    update: ir.Value


class Recurrence(ABC):
    """One way to write it; every dialect has one."""

    @abstractmethod
    def delta_rule(
        self, op: OpBuilder, tokens: DeltaTokens, state: ir.Value, heads: DeltaHeads
    ) -> tuple[ir.Value, ir.Value]:
        """Return what heads give [B, T, num_values * value_size], and the state behind the last token.

        Args:
            op: The builder.
            tokens: Of this run.
            state: [B, num_values, key_size, value_size].
            heads: Sizes.
        """


class ByOperators(Recurrence):
    """ONNX Runtime's own LinearAttention."""

    def delta_rule(
        self, op: OpBuilder, tokens: DeltaTokens, state: ir.Value, heads: DeltaHeads
    ) -> tuple[ir.Value, ir.Value]:
        """Return both of com.microsoft.LinearAttention, which runs token by token on a CPU."""
        made, after = op.LinearAttention(
            tokens.query,
            tokens.key,
            tokens.value,
            state,
            tokens.decay,
            tokens.update,
            q_num_heads=heads.num_keys,
            kv_num_heads=heads.num_values,
            update_rule="gated_delta",
            scale=float(heads.key_size) ** -0.5,
            _domain=CONTRIB,
            _version=1,
            _outputs=2,
        )
        return made, after


class ByScan(Recurrence):
    """Standard operators: a Scan over chunks of tokens."""

    def delta_rule(
        self, op: OpBuilder, tokens: DeltaTokens, state: ir.Value, heads: DeltaHeads
    ) -> tuple[ir.Value, ir.Value]:
        """Return both of `chunked_delta_rule`."""
        shared = heads.num_values // heads.num_keys
        query, key = (_per_value(op, each, heads, shared) for each in (tokens.query, tokens.key))
        value = op.Transpose(op.Reshape(tokens.value, [0, 0, heads.num_values, heads.value_size]), perm=[0, 2, 1, 3])
        decay, update = (op.Transpose(each, perm=[0, 2, 1]) for each in (tokens.decay, tokens.update))
        query = op.Mul(query, float(heads.key_size) ** -0.5)
        made, after = chunked_delta_rule(op, DeltaChunks(query, key, value, decay, update), state)
        return op.Reshape(op.Transpose(made, perm=[0, 2, 1, 3]), [0, 0, heads.values_width]), after


def _per_value(op: OpBuilder, x: ir.Value, heads: DeltaHeads, shared: int) -> ir.Value:
    """Return [B, num_values, T, key_size] of [B, T, num_keys * key_size], each head as often as values share it."""
    split = op.Reshape(x, [0, 0, heads.num_keys, 1, heads.key_size])
    if shared > 1:
        split = op.Expand(split, [1, 1, 1, shared, 1])
    by_value = op.Reshape(split, [0, 0, heads.num_values, heads.key_size])
    return op.Transpose(by_value, perm=[0, 2, 1, 3])
