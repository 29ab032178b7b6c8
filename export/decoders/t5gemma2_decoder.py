"""T5Gemma 2's decoder (arXiv 2512.14856): Gemma 3's layers, whose attention looks at a memory in the same softmax."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.states import State
from export.config import Raw
from export.decoders.bart import MEMORY_ROWS, memory_states
from export.decoders.decoder import Decoder
from export.decoders.gemma import GemmaNorm
from export.decoders.gemma3_text import Gemma3Text
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.merged_attention import Memory, MergedAttention
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.rotary import Angles


class _Places(Module):
    """Embeddings as they are; layers learn from it where tokens stand."""

    def __init__(self) -> None:
        super().__init__("")
        self.found: ir.Value | None = None

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        self.found = position_ids
        return x


class T5Gemma2Decoder(Decoder):
    """`model_type` t5gemma2_decoder.

    Args:
        own: Gemma 3's decoder of the same sizes.
        memory_rows: M, of one sequence.
    """

    def __init__(self, own: Gemma3Text, memory_rows: int) -> None:
        super().__init__(own.config)
        self._own, self._memory_rows, self._standing = own, memory_rows, _Places()

    @classmethod
    def read(cls, raw: Raw) -> T5Gemma2Decoder:
        """Return the decoder that a config describes, with `MEMORY_ROWS` beside its own keys.

        Raises:
            UnsupportedConfigError: As of Gemma 3.
        """
        return cls(Gemma3Text.read(raw), int(raw.get(MEMORY_ROWS, 1)))

    @property
    def embedding_scale(self) -> float:
        """The root of the width."""
        return self._own.embedding_scale

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What each token sees of the memory."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def window_of(self, number: int) -> int | None:
        """Return how many rows of the cache the tokens of a layer see; None: all."""
        return self._own.window_of(number)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of layers that see everything, and of the others."""
        return self._own.angles(op, position_ids)

    def entrance(self) -> Module:
        """Return what tells layers where tokens stand."""
        return self._standing

    def norm(self, dialect: Dialect) -> Module:
        """Return a norm of hidden states."""
        return self._own.norm(dialect)

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values of text, then those of the memory."""
        return (*super().states_of(number), *memory_states(self.config, number, self._memory_rows))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention over text and memory, and a gated feed-forward, each between two norms."""
        config, own = self.config, self._own
        query_norm, key_norm = (GemmaNorm(config.head_size, config.rms_norm_eps, dialect) for _ in range(2))
        attention = MergedAttention(
            config, dialect, number, (query_norm, key_norm), scale=own.scale, window=own.window_of(number)
        )
        return _Layer(self, dialect, attention, own.angles_of(number), self._standing)


class _Layer(Module):
    """Attention and feed-forward, each between two norms, added to what came in."""

    def __init__(
        self, decoder: Decoder, dialect: Dialect, attention: MergedAttention, angles: int, places: _Places
    ) -> None:
        super().__init__()
        config = decoder.config
        norms = [GemmaNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(4)]
        self.pre_self_attn_layernorm, self.post_self_attn_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]
        self.self_attn = attention
        self.mlp = GatedMLP(config)
        self.angles, self._told = angles, [places]  # in a list: it is no part of the layer

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values of text, then those of the memory."""
        past, memory = CacheRows(*states[:2]), Memory(states[2], states[3], around.more[0])
        normed, places = self.pre_self_attn_layernorm(op, x), self._told[0].found
        attended, present, queries = self.self_attn(
            op, normed, around.angles[self.angles], past, around.lengths, memory, places
        )
        x = op.Add(x, self.post_self_attn_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        return Left(op.Add(x, self.post_feedforward_layernorm(op, fed)), (present.key, present.value), queries)
