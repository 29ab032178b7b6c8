"""SigLIP and the fixed-resolution SigLIP 2 (arXiv 2303.15343, 2502.14786): no class token, pooling by attention."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, EncoderMLP, TextEmbeddings, attention_bias, tower_heads
from export.towers.siglip import VISION_DEFAULTS, SiglipTower

TEXT_DEFAULTS: Raw = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


_PACKED = ("in_proj_weight", "in_proj_bias")
"""Where the checkpoint keeps queries, keys and values."""


class _PoolAttention(Module):
    """The learned query, one row, over the `rows` patches of an image."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.query = PackedLinear(size, 0, "q_proj", _PACKED, rows=1)
        self.key = PackedLinear(size, 1, "k_proj", _PACKED, rows=rows)
        self.value = PackedLinear(size, 2, "v_proj", _PACKED, rows=rows)
        self.out_proj = Linear(size, size, rows=1)
        self.heads = tower_heads(config)
        self.dialect = dialect

    def forward(self, op: OpBuilder, probe: ir.Value, x: ir.Value) -> ir.Value:
        query, key, value = self.query(op, probe), self.key(op, x), self.value(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class PoolingHead(Module):
    """Attention pooling of `rows` patches (Zhai et al., arXiv 2106.04560, "multihead attention pooling")."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.probe = Weight(1, 1, config.hidden_size)
        self.attention = _PoolAttention(config, dialect, rows=rows)
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=1)
        self.size = config.hidden_size

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, D] from [I, patches, D]."""
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.size], axis=0)
        pooled = self.attention(op, op.Expand(self.probe, shape), x)
        pooled = op.Add(pooled, self.mlp(op, self.layernorm(op, pooled)))
        return op.Squeeze(pooled, [1])


class _Vision(SiglipTower):
    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__(config, dialect, "vision_model")
        self.post_layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)
        self.head = PoolingHead(config.tower, dialect, rows=self.embeddings.num_rows)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        passed = super().forward(op, pixel_values)
        return self.head(op, self.post_layernorm(op, passed.states[-1]))


class _Text(Module):
    """Attends in both directions and pools the last place, which is padding for all but the longest texts."""

    def __init__(self, tower: TowerConfig, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("text_model")
        self.embeddings = TextEmbeddings(raw["vocab_size"], raw["max_position_embeddings"], tower.hidden_size)
        self.encoder = Encoder(tower, dialect, rows=self.embeddings.num_rows)
        self.final_layer_norm = LayerNorm(tower.hidden_size, tower.layer_norm_eps)
        self.head = Linear(tower.hidden_size, embedding_size, rows=1)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=False)
        hidden = self.encoder(op, self.embeddings(op, input_ids), bias).states[-1]
        return self.head(op, self.final_layer_norm(op, op.Gather(hidden, -1, axis=1)))


class SiglipTexts(DualEncoder):
    """What texts are embedded by SigLIP's tower.

    Args:
        config: Of the checkpoint.
        image_size: Width of an image's vector.

    Raises:
        UnsupportedConfigError: Images have no vector, or one of another width.
    """

    scalars = ("logit_scale", "logit_bias")
    lower_cases = True

    def __init__(self, config: Raw, image_size: int) -> None:
        super().__init__(config)
        if not sub_config(config, "vision_config").get("vision_use_head", True):
            raise UnsupportedConfigError("vision_config.vision_use_head is false: without it there is no embedding")
        self._text = {**TEXT_DEFAULTS, **sub_config(config, "text_config")}
        self._embedding_size = int(self._text.get("projection_size") or self._text["hidden_size"])
        if self._embedding_size != image_size:
            raise UnsupportedConfigError(
                f"text_config.projection_size {self._embedding_size} differs from vision_config.hidden_size "
                f"{image_size}: the two embeddings cannot be compared"
            )

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self._embedding_size, int(vocab_size), int(longest), scoring="sigmoid")

    def text(self, dialect: Dialect) -> Module:
        """Return tower and head."""
        return _Text(TowerConfig.read(self._text, {}), self._text, dialect, self._embedding_size)


class Siglip(SiglipTexts):
    """`model_type` siglip, which SigLIP 2 checkpoints of fixed resolution carry as well."""

    image_processor = "SiglipImageProcessor"

    def __init__(self, config: Raw) -> None:
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        super().__init__(config, self._vision.tower.hidden_size)

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and pooling head."""
        return _Vision(self._vision, dialect)
