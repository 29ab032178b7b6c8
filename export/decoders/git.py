"""GIT's decoder (arXiv 2205.14100): BERT's layers over an image's rows and the text behind them."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, read_sizes
from export.decoders.decoder import Decoder
from export.nn.bert_decoder import BertDecoderLayer, BertEntrance
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import Nothing
from export.nn.rotary import Angles

DEFAULTS: Raw = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
    "layer_norm_eps": 1e-12,
    "bos_token_id": 101,
    "eos_token_id": 102,
    "num_image_with_embedding": None,
}


class GitText(Decoder):
    """`model_type` git_text: what of a GIT is no tower."""

    has_head_bias = True

    @classmethod
    def read(cls, raw: Raw) -> GitText:
        """Return the decoder that a config describes."""
        merged = {**DEFAULTS, **raw}
        sizes = {**merged, "rms_norm_eps": merged["layer_norm_eps"]}
        return cls(replace(read_sizes(sizes, qkv_bias=True), out_bias=True))

    def entrance(self) -> Module:
        """Return learned positions and their norm, which rows of images pass by."""
        return BertEntrance(self.config, passes_images=True)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a feed-forward."""
        return BertDecoderLayer(self.config, dialect, number, looks_across=False)

    def norm(self, dialect: Dialect) -> Module:
        """Return nothing: the last layer ends with a norm."""
        return Nothing()
