"""FLAVA (arXiv 2112.04482): its image encoder and its text encoder, as its contrastive loss compares them."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, VisionConfig, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.bert import TEXT_DEFAULTS, BertConfig, BertEmbeddings
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.pre_norm import PreNormEncoder
from export.nn.vit import attention_bias
from export.towers.vit import VISION_DEFAULTS, VitTower


class _TextTower(Module):
    """BERT's embeddings under ViT's layers."""

    def __init__(self, config: BertConfig, dialect: Dialect, *, qkv_bias: bool) -> None:
        super().__init__("text_model")
        self.embeddings = BertEmbeddings(config)
        self.encoder = PreNormEncoder(config.tower, dialect, rows=config.max_tokens, qkv_bias=qkv_bias)
        self.layernorm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=False)
        return self.layernorm(op, self.encoder(op, self.embeddings(op, input_ids), bias))


class _Vision(Module):
    def __init__(self, tower: VitTower, size: int, embedding_size: int) -> None:
        super().__init__()
        self.image_model = tower
        self.image_projection = Linear(size, embedding_size, rows=1)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.image_projection(op, op.Gather(self.image_model(op, pixel_values), 0, axis=1))


class _Text(Module):
    def __init__(self, tower: _TextTower, size: int, embedding_size: int) -> None:
        super().__init__()
        self.text_model = tower
        self.text_projection = Linear(size, embedding_size, rows=1)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, op.Gather(self.text_model(op, input_ids, attention_mask), 0, axis=1))


class Flava(DualEncoder):
    """`model_type` flava; what fuses images with texts is left out."""

    scalars = ("logit_scale",)
    image_processor = "FlavaImageProcessor"
    pads_to_max = False
    renames = ((r"^flava\.", ""),)
    unused = (
        *DualEncoder.unused,
        r"multimodal_model\..*",
        r"(image|text)_to_mm_projection\..*",
        r"image_codebook\..*",
        r"(mim|mlm|itm|mmm_image|mmm_text)_head\..*",
        r"(image|text)_model\.pooler\..*",
        r"image_model\.embeddings\.mask_token",
        r"global_contrastive_head\..*",
    )
    """What hides patches, guesses them, and fuses; poolers feed none of the contrastive part."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        images = {**VISION_DEFAULTS, **sub_config(config, "image_config")}
        texts = {**TEXT_DEFAULTS, "qkv_bias": True, **sub_config(config, "text_config")}
        self._vision, self._text = VisionConfig.read(images, {}), BertConfig.read(texts, {})
        self._qkv_bias = bool(images["qkv_bias"]), bool(texts["qkv_bias"])
        self._embedding_size = int(config.get("projection_dim", 768))

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self._embedding_size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = VitTower(self._vision, dialect, "image_model", qkv_bias=self._qkv_bias[0])
        return _Vision(tower, self._vision.tower.hidden_size, self._embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = _TextTower(self._text, dialect, qkv_bias=self._qkv_bias[1])
        return _Text(tower, self._text.tower.hidden_size, self._embedding_size)
