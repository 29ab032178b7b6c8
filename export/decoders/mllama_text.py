"""Llama 3.2 Vision's decoder: a Llama with layers between that attend to a memory of images instead of to text."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from bundle.states import MemoryPlace, State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.cross_attention import MemoryAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import RMSNorm

DEFAULTS: Raw = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "hidden_act": "silu",
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
MEMORY_ROWS = "memory_rows"
"""How many rows of image features a sequence can hold; the family adds it to the text config."""


class _CrossLayer(Module):
    """Attention over the memory and a feed-forward, each behind a norm and let in by a gate.

    The feed-forward adds nothing for tokens that no image stands before.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2)
        )
        self.cross_attn = MemoryAttention(config, RMSNorm(config.head_size, config.rms_norm_eps, dialect))
        self.mlp = GatedMLP(config)
        self.attention_gate = Weight(1, name="cross_attn_attn_gate")
        self.feed_forward_gate = Weight(1, name="cross_attn_mlp_gate")

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        seen = around.more[0]
        attended = self.cross_attn(op, self.input_layernorm(op, x), *states, seen)
        x = op.Add(x, op.Mul(op.Tanh(self.attention_gate), attended))
        has_image = op.Cast(op.Slice(seen, [2], [3], [2]), to=ir.DataType.FLOAT)
        fed = op.Mul(self.mlp(op, self.post_attention_layernorm(op, x)), has_image)
        return Left(op.Add(x, op.Mul(op.Tanh(self.feed_forward_gate), fed)), (), None)


class MllamaText(Decoder):
    """`model_type` mllama_text_model.

    Args:
        config: Sizes.
        cross_layers: Numbers of the layers that attend to the memory.
        memory_rows: M, of one sequence.
    """

    def __init__(self, config: DecoderConfig, cross_layers: tuple[int, ...], memory_rows: int) -> None:
        super().__init__(config)
        self.cross_layers = cross_layers
        self._memory_rows = memory_rows

    @classmethod
    def read(cls, raw: Raw) -> MllamaText:
        """Return the decoder that a text config describes, with `MEMORY_ROWS` beside its own keys."""
        full = {**DEFAULTS, **raw}
        config = read_sizes({**full, "attention_bias": False, "mlp_bias": False, "head_dim": None}, qkv_bias=False)
        cross = full["cross_attention_layers"]
        numbers = range(config.num_layers)
        if not cross or not set(cross) < set(numbers):
            raise UnsupportedConfigError(
                f"text_config.cross_attention_layers {cross!r:.200}: wanted are some of the layers 0 to "
                f"{config.num_layers - 1}, and not all of them"
            )
        return cls(config, tuple(sorted(set(cross))), int(full.get(MEMORY_ROWS, 1)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What each token sees of the memory."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention over text or over the memory, and a gated feed-forward."""
        if number in self.cross_layers:
            return _CrossLayer(self.config, dialect)
        attention = CachedAttention(self.config, dialect, number)
        return DecoderLayer(self.config, dialect, attention, GatedMLP(self.config))

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values of text, or of the memory."""
        if number not in self.cross_layers:
            return super().states_of(number)
        heads, size, rows = self.config.num_kv_heads, self.config.head_size, self._memory_rows
        first = 2 * self.cross_layers.index(number) * heads * size
        key = MemoryPlace(first_column=first, row_axis=3)
        value = MemoryPlace(first_column=first + heads * size, row_axis=2)
        return (
            _memory(f"cross_key_values.{number}.key", ("B", heads, size, rows), key),
            _memory(f"cross_key_values.{number}.value", ("B", heads, rows, size), value),
        )


def _memory(name: str, shape: tuple[int | str, ...], place: MemoryPlace) -> State:
    return State(input=name, kind="memory", dtype="float32", shape=shape, memory=place)
