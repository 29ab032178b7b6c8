"""LIMoE (Mustafa et al., arXiv 2206.02770): one tower of experts for images and texts.

A matrix for each modality makes vectors of patches and words, the same layers read both without being told which they
are, the mean of what they made counts, and a matrix for each modality ends it. In layers with experts a vector meets
the most probable one, times its probability (more than one, where a config says so). Blocks are those of
google-research/vmoe, which has layers of the authors': pre-norm, biases everywhere but in the router, GELU by tanh,
positions learned, a norm before the mean. As in its text tower, nothing masks padding: texts are of one length, in
attention and in the mean. Experts have no capacity, by which training drops vectors (batch priority routing says
which): what is dropped would depend on what else is in a batch.

Neither weights nor names of it are published. The latter are transformers' of CLIP's parts, at the top of a checkpoint.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig, require
from export.dual_encoder import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, SiglipEmbeddings, TextEmbeddings

_DEFAULTS: Raw = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vocab_size": 32_000,
    "max_position_embeddings": 16,
    "projection_dim": 512,
}
"""Of a ViT-B/16, and of short texts."""


class _Tower(Module):
    """Vectors of either modality to one, [B, D]."""

    def __init__(self, config: VisionConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__("")
        tower = config.tower
        self.encoder = Encoder(tower, dialect, rows=rows)
        self.encoder_norm = LayerNorm(tower.hidden_size, tower.layer_norm_eps)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.ReduceMean(self.encoder_norm(op, self.encoder(op, x).states[-1]), [1], keepdims=0)


class _Images(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.vision_embeddings = SiglipEmbeddings(config)
        self.tower = _Tower(config, dialect, rows=self.vision_embeddings.num_rows)
        self.visual_projection = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.visual_projection(op, self.tower(op, self.vision_embeddings(op, pixel_values)))


class _Texts(Module):
    def __init__(self, config: VisionConfig, words: tuple[int, int], dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        vocab_size, longest = words
        self.text_embeddings = TextEmbeddings(vocab_size, longest, config.tower.hidden_size)
        self.tower = _Tower(config, dialect, rows=longest)
        self.text_projection = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.tower(op, self.text_embeddings(op, input_ids)))


class Limoe(DualEncoder):
    """`model_type` limoe: sizes and `moe` (export.tower_experts) at the top of the config."""

    scalars = ("logit_scale",)
    image_processor = "ViTImageProcessor"
    pads_to_max = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._raw = {**_DEFAULTS, **config}
        self._tower = VisionConfig.read(self._raw, {})
        require(self._raw, [("classifier", "gap"), ("position_embedding", "learned")])
        if self._tower.tower.experts is None:
            raise UnsupportedConfigError("config.json has no moe, which says where experts are")

    @property
    def image_size_px(self) -> int | None:
        """Side of the input."""
        return self._tower.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._words
        return TextTower(int(self._raw["projection_dim"]), vocab_size, longest, scoring="softmax")

    @property
    def _words(self) -> tuple[int, int]:
        return int(self._raw["vocab_size"]), int(self._raw["max_position_embeddings"])

    def vision(self, dialect: Dialect) -> Module:
        """Return patches, the tower and the projection of images."""
        return _Images(self._tower, dialect, int(self._raw["projection_dim"]))

    def text(self, dialect: Dialect) -> Module:
        """Return words, the tower and the projection of texts."""
        return _Texts(self._tower, self._words, dialect, int(self._raw["projection_dim"]))
