"""BLIP's decoder (arXiv 2201.12086): BERT made causal, every layer of which looks at a memory."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.states import State
from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.bart import MEMORY_ROWS, memory_states
from export.decoders.decoder import Decoder
from export.nn.bert_decoder import BertDecoderLayer, BertEntrance
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "vocab_size": 30_524,
    "hidden_size": 768,
    "encoder_hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "bos_token_id": 30_522,
    "sep_token_id": 102,
    "is_decoder": True,
}


class _Transform(Module):
    """What states pass before they are compared with words (BERT's head)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__("transform")
        self.dense = Linear(config.hidden_size, config.hidden_size, rows=None)
        self.norm = LayerNorm(config.hidden_size, config.rms_norm_eps, name="LayerNorm")
        self.hidden_act = config.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.norm(op, activation(op, self.hidden_act, self.dense(op, x)))


class BlipText(Decoder):
    """`model_type` blip_text_model.

    Args:
        config: Sizes.
        memory_rows: M, of one sequence.
    """

    has_head_bias = True

    def __init__(self, config: DecoderConfig, memory_rows: int) -> None:
        super().__init__(config)
        self._memory_rows = memory_rows

    @classmethod
    def read(cls, raw: Raw) -> BlipText:
        """Return the decoder that a text config describes, with `MEMORY_ROWS` beside its own keys.

        Raises:
            UnsupportedConfigError: It is no decoder.
        """
        merged = {**DEFAULTS, **raw}
        require(merged, [("is_decoder", True)])
        sizes = {**merged, "rms_norm_eps": merged["layer_norm_eps"]}
        config = replace(read_sizes(sizes, qkv_bias=True), out_bias=True)
        return cls(config, int(merged.get(MEMORY_ROWS, 1)))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What each token sees of the memory."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def entrance(self) -> Module:
        """Return learned positions and their norm."""
        return BertEntrance(self.config, passes_images=False)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return both attentions and a feed-forward."""
        return BertDecoderLayer(self.config, dialect, number, looks_across=True)

    def norm(self, dialect: Dialect) -> Module:
        """Return the head's matrix, activation and norm."""
        return _Transform(self.config)

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values of text, then those of the memory."""
        return (*super().states_of(number), *memory_states(self.config, number, self._memory_rows))
