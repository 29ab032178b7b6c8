"""What a tower's attention says of its tokens: optional outputs of a vision graph, for reducers of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from export.nn.dialect import Heads
from export.nn.squares import squares_shape, tokens_shape
from export.nn.vit import Looked

_TO_THE_END = 2**31 - 1


def tower_view(op: OpBuilder, looked: Looked, heads: Heads, *, has_class_token: bool) -> tuple[ir.Value, ir.Value]:
    """Return the attention that each patch receives [I, T] and its key [I, T, C], of one layer.

    Attention is that of the class token, which is itself left out; of a tower without one, the mean over all patches.
    Both are means over heads (VisionZip, arXiv 2412.04467, section 3.2; FasterVLM, arXiv 2412.01818, section 3.2).

    Args:
        op: The builder.
        looked: What the layer's attention was made of.
        heads: Its sizes.
        has_class_token: The first token is one.
    """
    query, key = _heads_of(op, looked.query, heads), _heads_of(op, looked.key, heads)
    if has_class_token:
        query = op.Slice(query, [0], [1], [2])
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), heads.scale)
    received = op.ReduceMean(op.Softmax(scores, axis=-1), [1, 2], keepdims=0)
    keys = op.ReduceMean(op.Reshape(looked.key, [0, 0, heads.num, heads.size]), [2], keepdims=0)
    if has_class_token:
        received = op.Slice(received, [1], [_TO_THE_END], [1])
        keys = op.Slice(keys, [1], [_TO_THE_END], [1])
    return received, keys


def _heads_of(op: OpBuilder, x: ir.Value, heads: Heads) -> ir.Value:
    """Return [I, H, T, C] from [I, T, H*C]."""
    return op.Transpose(op.Reshape(x, [0, 0, heads.num, heads.size]), perm=[0, 2, 1, 3])


def over_squares(
    op: OpBuilder, received: ir.Value, keys: ir.Value, grid: int | ir.Value, factor: int, key_size: int
) -> tuple[ir.Value, ir.Value]:
    """Return what `tower_view` returned for tokens that are squares of patches: sums of attention, means of keys.

    Args:
        op: The builder.
        received: [I, grid*grid].
        keys: [I, grid*grid, key_size].
        grid: Patches along one side, a multiple of `factor`; [1] int64 where the graph counts them.
        factor: Side of a square.
        key_size: C.
    """
    by_square = op.Reshape(received, squares_shape(op, grid, factor, [factor]))
    summed = op.ReduceSum(by_square, [2, 4], keepdims=0)
    mean = op.ReduceMean(op.Reshape(keys, squares_shape(op, grid, factor, [factor, key_size])), [2, 4], keepdims=0)
    tokens = (tokens_shape(op, grid, factor, behind) for behind in ([], [key_size]))
    return op.Reshape(summed, next(tokens)), op.Reshape(mean, next(tokens))


def tower_specs(num_tokens: int | str, key_size: int) -> Sequence[TensorSpec]:
    """Return the outputs of a vision graph that tells what its tower looked at."""
    return (
        TensorSpec(name=tensors.IMAGE_ATTENTION, dtype="float32", shape=("I", num_tokens)),
        TensorSpec(name=tensors.IMAGE_KEYS, dtype="float32", shape=("I", num_tokens, key_size)),
    )
