"""A Llama whose layers fuse an image into every token by attention without parameters (ADEM-VL, arXiv 2410.17779)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from bundle.states import MemoryPlace, State
from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.decoders.llama import DEFAULTS
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import activation
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm

MEMORY_ROWS = "memory_rows"
"""How many rows of an image are fused; the family adds it to the text config."""


@dataclass(frozen=True)
class Fusion:
    """How an image is fused.

    Attributes:
        rows: M, of all scales.
        num_dropped: Of them, those of the lowest scores count nothing for a token.
        share: That is added of what is fused.
    """

    rows: int
    num_dropped: int
    share: float

    @classmethod
    def read(cls, raw: Raw) -> Fusion:
        """Return the fusion that a config describes, by the names and defaults of the authors' options.

        Raises:
            UnsupportedConfigError: So many rows are dropped that none is left.
        """
        rows, ratio = int(raw[MEMORY_ROWS]), float(raw.get("drop_ratio", 0.1))
        if not 0 <= ratio < 1:
            raise UnsupportedConfigError(
                f"drop_ratio {ratio}: wanted is the part of rows that is dropped, 0 to below 1"
            )
        return cls(rows, int(ratio * rows), float(raw.get("alpha", 0.1)))


class _Embedded(Module):
    """The image's rows as keys and values, each with an embedding of its own, which stands alone without an image."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__("")
        self.adapter_emb1 = Weight(1, rows, size)
        self.adapter_emb2 = Weight(1, rows, size)

    def forward(
        self, op: OpBuilder, states: Sequence[ir.Value], inputs: Sequence[ir.Value]
    ) -> tuple[ir.Value, ir.Value]:
        """Return keys [B, D, M] and values [B, M, D]."""
        (rows,), (seen,) = states, inputs
        has_image = op.Cast(op.ReduceMax(op.Slice(seen, [2], [3], [2]), [1], keepdims=1), to=ir.DataType.BOOL)
        rows = op.Where(has_image, rows, 0.0)  # what others left in the memory is no number to multiply
        keys = activation(op, "silu", op.Add(rows, self.adapter_emb1))
        return op.Transpose(keys, perm=[0, 2, 1]), op.Add(rows, self.adapter_emb2)


class _FusedLayer(Module):
    """A layer of Llama; a share of the rows that a token resembles is added beside its feed-forward."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int, fusion: Fusion) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2)
        )
        self.self_attn = CachedAttention(config, dialect, number)
        self.mlp = GatedMLP(config)
        self.fusion = fusion

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths)
        x = op.Add(x, attended)
        normed = self.post_attention_layernorm(op, x)
        keys, values = around.shared
        fused = op.Mul(_fused(op, normed, keys, values, self.fusion.num_dropped), self.fusion.share)
        x = op.Add(op.Add(x, self.mlp(op, normed)), fused)
        return Left(x, (present.key, present.value), queries)


def _fused(op: OpBuilder, x: ir.Value, keys: ir.Value, values: ir.Value, num_dropped: int) -> ir.Value:
    """Return [B, T, D]: values by silu(x) times keys, unnormed; scores below that of place `num_dropped` are 0."""
    scores = op.MatMul(activation(op, "silu", x), keys)
    if num_dropped:
        lowest, _ = op.TopK(scores, [num_dropped + 1], axis=-1, largest=0, sorted=1, _outputs=2)
        least = op.Slice(lowest, [num_dropped], [num_dropped + 1], [2])
        scores = op.Where(op.Less(scores, least), 0.0, scores)
    return op.MatMul(scores, values)


class LlamaADEM(Decoder):
    """`model_type` llama_adem, which the family calls it.

    Args:
        config: Sizes.
        fusion: How an image is fused.
    """

    def __init__(self, config: DecoderConfig, fusion: Fusion) -> None:
        super().__init__(config)
        self.fusion = fusion

    @classmethod
    def read(cls, raw: Raw) -> LlamaADEM:
        """Return the decoder that a text config describes, the family's keys beside its own."""
        require(raw, [("attention_bias", False), ("mlp_bias", False)])
        return cls(read_sizes({**DEFAULTS, **raw}, qkv_bias=False), Fusion.read(raw))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Whether there is an image."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    @property
    def shared_states(self) -> tuple[State, ...]:
        """The image's rows, the same for all layers."""
        size = self.config.hidden_size
        place = MemoryPlace(first_column=0, row_axis=1)
        shape = ("B", self.fusion.rows, size)
        return (State(input="image_rows", kind="memory", dtype="float32", shape=shape, memory=place),)

    def shared(self) -> Module:
        """Return keys and values of those rows."""
        return _Embedded(self.fusion.rows, self.config.hidden_size)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a layer of Llama that fuses."""
        return _FusedLayer(self.config, dialect, number, self.fusion)
