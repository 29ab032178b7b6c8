"""BERT's layers (arXiv 1810.04805) as a causal decoder has them: BLIP's, which look across at a memory, and GIT's."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import DecoderConfig
from export.nn.attention import CachedAttention
from export.nn.cross_attention import MemoryAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Embedding
from export.nn.mlp import FeedForward
from export.nn.module import Module
from export.nn.norms import LayerNorm

_OF_LAYERS = (
    (r"attention\.self\.query", "self_attn.q_proj"),
    (r"attention\.self\.key", "self_attn.k_proj"),
    (r"attention\.self\.value", "self_attn.v_proj"),
    (r"attention\.output\.dense", "self_attn.o_proj"),
    (r"attention\.output\.LayerNorm", "self_attn_norm"),
    (r"crossattention\.self\.query", "encoder_attn.q_proj"),
    (r"crossattention\.self\.key", "encoder_attn.k_proj"),
    (r"crossattention\.self\.value", "encoder_attn.v_proj"),
    (r"crossattention\.output\.dense", "encoder_attn.o_proj"),
    (r"crossattention\.output\.LayerNorm", "encoder_attn_norm"),
    (r"intermediate\.dense", "fc1"),
    (r"output\.dense", "fc2"),
    (r"output\.LayerNorm", "feed_forward_norm"),
)


def bert_renames(source: str, target: str) -> tuple[tuple[str, str], ...]:
    """Return how keys of a BERT become those of this file, a family's `renames`.

    Args:
        source: Where the checkpoint keeps embeddings and encoder, as a pattern that begins a key.
        target: The decoder's `text_prefix`, another one.
    """
    embeddings = rf"^{source}embeddings\."
    return (
        (rf"{embeddings}word_embeddings\.", f"{target}.embed_tokens."),
        (rf"{embeddings}position_embeddings\.", f"{target}.embed_positions."),
        (rf"{embeddings}LayerNorm\.", f"{target}.embed_norm."),
        *((rf"^{source}encoder\.layer\.(\d+)\.{old}\.", rf"{target}.layers.\1.{new}.") for old, new in _OF_LAYERS),
    )


class BertEntrance(Module):
    """Learned positions added to embeddings, and a norm of the sum.

    Args:
        config: Sizes.
        passes_images: Tokens at place -1 stand for rows of images, which are neither placed nor normed.
    """

    def __init__(self, config: DecoderConfig, *, passes_images: bool) -> None:
        super().__init__("")
        self.embed_positions = Embedding(config.max_positions, config.hidden_size)
        self.embed_norm = LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.passes_images = passes_images

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] of x [B, T, D] at places [B, T]."""
        if not self.passes_images:
            return self.embed_norm(op, op.Add(x, self.embed_positions(op, position_ids)))
        is_image = op.Less(position_ids, 0)
        places = self.embed_positions(op, op.Where(is_image, 0, position_ids))
        return op.Where(op.Unsqueeze(is_image, [2]), x, self.embed_norm(op, op.Add(x, places)))


class BertDecoderLayer(Module):
    """Attention to what was said, attention to a memory where there is one, a feed-forward: each normed with its sum.

    Args:
        config: Sizes.
        dialect: How attention is written.
        number: Of the layer.
        looks_across: There is a memory.
    """

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int, *, looks_across: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = CachedAttention(config, dialect, number)
        self.self_attn_norm = LayerNorm(size, eps)
        self.encoder_attn = MemoryAttention(config, bias=True) if looks_across else None
        self.encoder_attn_norm = LayerNorm(size, eps) if looks_across else None
        self.feed_forward = FeedForward(config, name="")
        self.feed_forward_norm = LayerNorm(size, eps)

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values of text, then those of the memory."""
        past, memory = CacheRows(*states[:2]), states[2:]
        attended, present, queries = self.self_attn(op, x, around.first_angles, past, around.lengths)
        x = self.self_attn_norm(op, op.Add(x, attended))
        if self.encoder_attn is not None and self.encoder_attn_norm is not None:
            x = self.encoder_attn_norm(op, op.Add(x, self.encoder_attn(op, x, *memory, around.more[0])))
        x = self.feed_forward_norm(op, op.Add(x, self.feed_forward(op, x)))
        return Left(x, (present.key, present.value), queries)
