"""The gated delta rule in standard operators: a Scan over chunks of tokens, each by products of matrices.

Within a chunk of c tokens, what each writes depends on what those before it wrote: (I + A) U = b V, A strictly lower
triangular (Yang et al., arXiv 2412.06464, section 3.3). Its inverse is put together from those of its halves, as
[[P, 0], [R, Q]]^-1 = [[P^-1, 0], [-Q^-1 R P^-1, Q^-1]]: six products of [c, c] for c = 64, as exact as solving row by
row. (The sum of A's powers needs as many, and loses all digits where keys are alike.)

A step has a chunk of one token, so it pays for no others; all sizes follow from T. Everything is inside the Scan's
body, where variants in float16 leave it in float32 (graphs.half).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

CHUNK_TOKENS = 32
"""As transformers' own chunks; a power of 2."""
_BODY = "gated_delta_rule"
_TO_THE_END = 2**31 - 1
_FAR_BELOW = -1e4
"""exp of it is 0."""


@dataclass(frozen=True)
class DeltaChunks:
    """What tokens bring, heads first.

    Attributes:
        query: [B, H, T, C], scaled.
        key: [B, H, T, C].
        value: [B, H, T, E].
        decay: [B, H, T].
        update: [B, H, T].
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    decay: ir.Value
    update: ir.Value


def chunked_delta_rule(op: OpBuilder, tokens: DeltaChunks, state: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return [B, H, T, E], and the state behind the last token.

    Tokens that fill up the last chunk change nothing: they forget nothing and write nothing.

    Args:
        op: The builder.
        tokens: Of the run.
        state: [B, H, C, E] before it.
    """
    num_tokens = op.Shape(tokens.query, start=2, end=3)
    chunk = op.Min(num_tokens, [CHUNK_TOKENS])
    num_chunks = op.Div(op.Sub(op.Add(num_tokens, chunk), 1), chunk)
    missing = op.Sub(op.Mul(num_chunks, chunk), num_tokens)
    matrices = [_in_chunks(op, each, num_chunks, chunk, missing) for each in (tokens.query, tokens.key, tokens.value)]
    numbers = [
        op.Squeeze(_in_chunks(op, op.Unsqueeze(each, [-1]), num_chunks, chunk, missing), [-1])
        for each in (tokens.decay, tokens.update)
    ]
    after, made = _scan(op, state, [*matrices, *numbers])
    by_head = op.Transpose(made, perm=[1, 2, 0, 3, 4])
    size = op.Concat([0, 0, -1], op.Shape(tokens.value, start=3, end=4), axis=0)
    return op.Slice(op.Reshape(by_head, size), [0], num_tokens, [2]), after


def _in_chunks(op: OpBuilder, x: ir.Value, num_chunks: ir.Value, chunk: ir.Value, missing: ir.Value) -> ir.Value:
    """Return [n, B, H, c, N] of [B, H, T, N], zeros behind the last token."""
    filled = op.Pad(x, op.Concat([0, 0, 0, 0, 0, 0], missing, [0], axis=0))
    split = op.Reshape(filled, op.Concat([0, 0], num_chunks, chunk, op.Shape(x, start=3, end=4), axis=0))
    return op.Transpose(split, perm=[2, 0, 1, 3, 4])


def _scan(op: OpBuilder, state: ir.Value, inputs: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Return the last state, and what every chunk gives [n, B, H, c, E]."""
    names = ("state", "query", "key", "value", "decay", "update")
    kinds = [ir.TensorType(ir.DataType.FLOAT)] * len(names)
    taken = [ir.Value(name=name, type=kind) for name, kind in zip(names, kinds, strict=True)]
    given = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in ("after", "made")]
    body = op.builder.subgraph(_chunk, taken, given, name=_BODY)
    for value in (*body.inputs, *(made for node in body for made in node.outputs)):
        value.name = f"{_BODY}.{value.name}"  # names count from 0 in either graph, and must differ
    after, made = op.Scan(state, *inputs, body=body, num_scan_inputs=len(inputs), _outputs=2)
    return after, made


def _chunk(
    op: OpBuilder,
    state: ir.Value,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    decay: ir.Value,
    update: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Return the state behind a chunk, and what its tokens give [B, H, c, E]."""
    places = op.Range(0, op.Squeeze(op.Shape(query, start=2, end=3), [0]), 1)
    rows, columns = op.Unsqueeze(places, [1]), op.Unsqueeze(places, [0])
    forgotten = op.CumSum(decay, 2)
    since = op.Sub(op.Unsqueeze(forgotten, [3]), op.Unsqueeze(forgotten, [2]))
    staying = op.Exp(op.Where(op.GreaterOrEqual(rows, columns), since, _FAR_BELOW))
    keys = op.Transpose(key, perm=[0, 1, 3, 2])
    weights = op.Unsqueeze(update, [3])
    read = op.Mul(op.MatMul(op.Mul(key, weights), keys), staying)
    solved = _inverse(op, read, rows, columns)
    from_start = op.Unsqueeze(op.Exp(forgotten), [3])
    known = op.MatMul(op.Mul(key, from_start), state)
    written = op.MatMul(solved, op.Mul(op.Sub(value, known), weights))
    made = op.Add(
        op.MatMul(op.Mul(query, from_start), state), op.MatMul(op.Mul(op.MatMul(query, keys), staying), written)
    )
    whole = op.Slice(forgotten, [-1], [_TO_THE_END], [2])
    to_end = op.Unsqueeze(op.Exp(op.Sub(whole, forgotten)), [2])
    kept = op.Mul(state, op.Unsqueeze(op.Exp(whole), [3]))
    return op.Add(kept, op.MatMul(op.Mul(keys, to_end), written)), made


def _inverse(op: OpBuilder, below: ir.Value, rows: ir.Value, columns: ir.Value) -> ir.Value:
    """Return (I + L)^-1 [B, H, c, c], L being what of `below` is below the diagonal.

    Args:
        op: The builder.
        below: [B, H, c, c].
        rows: [c, 1] numbers of rows.
        columns: [1, c] of columns.
    """
    found = op.Cast(op.Equal(rows, columns), to=ir.DataType.FLOAT)
    size = 1
    while size < CHUNK_TOKENS:
        block, other = op.Div(rows, size), op.Div(columns, size)
        is_lower = op.And(op.Equal(op.Sub(block, other), 1), op.Equal(op.Mod(block, 2), 1))
        corner = op.Where(is_lower, below, 0.0)
        found = op.Sub(found, corner if size == 1 else op.MatMul(op.MatMul(found, corner), found))
        size *= 2
    return found
