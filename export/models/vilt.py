"""ViLT (Kim et al., arXiv 2102.03334): one encoder over the words of a text and the patches of an image; a score."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, ShortestEdge
from export.config import Raw, VisionConfig, require
from export.cross_encoder import CrossEncoder, PairTexts
from export.nn.bert import TEXT_DEFAULTS, BertConfig, BertEmbeddings
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, PatchEmbedding, attention_bias
from graphs.labels import Label

_DEFAULTS: Raw = {
    "vocab_size": 30_522,
    "type_vocab_size": 2,
    "modality_type_vocab_size": 2,
    "max_position_embeddings": 40,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 384,
    "patch_size": 32,
    "num_channels": 3,
}
_TEXT, _IMAGE = 0, 1
"""Rows of the table of modalities (section 3.1)."""


class _Table(Module):
    """A table of which the graph itself reads one row."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(num_rows, size, label=Label("constant table"))

    def forward(self, op: OpBuilder, row: int) -> ir.Value:
        """Return [D]."""
        return op.Gather(self.weight, row, axis=0)


class _Patches(Module):
    """Where the checkpoint keeps the convolution."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [B, patches, D], row by row."""
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    """Words and patches, each with its position and its modality."""

    def __init__(self, config: VisionConfig, raw: Raw) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.text_embeddings = BertEmbeddings(BertConfig.read(raw, {**TEXT_DEFAULTS, **_DEFAULTS}))
        self.cls_token = Weight(1, 1, size)
        self.patch_embeddings = _Patches(config)
        self.position_embeddings = Weight(1, config.grid**2 + 1, size)
        self.token_type_embeddings = _Table(raw["modality_type_vocab_size"], size)
        self.config = config

    def forward(self, op: OpBuilder, input_ids: ir.Value, pixel_values: ir.Value) -> ir.Value:
        """Return [B, T + 1 + patches, D]."""
        patches = self.patch_embeddings(op, pixel_values)
        shape = op.Concat(op.Shape(patches, start=0, end=1), [1, self.config.tower.hidden_size], axis=0)
        image = op.Add(
            op.Concat(op.Expand(self.cls_token, shape), patches, axis=1),
            op.Concat(op.Slice(self.position_embeddings, [0], [1], [1]), self._positions(op, pixel_values), axis=1),
        )
        text = self.text_embeddings(op, input_ids)
        return op.Concat(
            op.Add(text, self.token_type_embeddings(op, _TEXT)),
            op.Add(image, self.token_type_embeddings(op, _IMAGE)),
            axis=1,
        )

    def _positions(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [1, patches, D]: the table, a square, stretched to the image's grid, corner on corner."""
        grid, size = self.config.grid, self.config.tower.hidden_size
        rows = op.Slice(self.position_embeddings, [1], [grid**2 + 1], [1])
        square = op.Reshape(op.Transpose(rows, perm=[0, 2, 1]), [1, size, grid, grid])
        sides = op.Div(op.Shape(pixel_values, start=2, end=4), self.config.patch_size_px)
        stretched = op.Resize(
            square,
            None,
            None,
            op.Concat([1, size], sides, axis=0),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        )
        return op.Transpose(op.Reshape(stretched, [1, size, -1]), perm=[0, 2, 1])


class _Vilt(Module):
    """The encoder, and what its first token became."""

    def __init__(self, config: VisionConfig, raw: Raw, dialect: Dialect) -> None:
        super().__init__("vilt")
        size = config.tower.hidden_size
        rows = raw["max_position_embeddings"] + config.grid**2 + 1
        self.embeddings = _Embeddings(config, raw)
        self.encoder = Encoder(config.tower, dialect, rows=rows)
        self.layernorm = LayerNorm(size, config.tower.layer_norm_eps)
        self.pooler = Linear(size, size, rows=1, name="pooler.dense")

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, pixel_values: ir.Value) -> ir.Value:
        embedded = self.embeddings(op, input_ids, pixel_values)
        counted = op.Sub(op.Shape(embedded, start=1, end=2), op.Shape(input_ids, start=1, end=2))
        seen = op.Expand([1], op.Concat(op.Shape(input_ids, start=0, end=1), counted, axis=0))
        bias = attention_bias(op, op.Concat(attention_mask, seen, axis=1), is_causal=False)
        states = self.encoder(op, embedded, bias).states[-1]
        return op.Tanh(self.pooler(op, self.layernorm(op, op.Gather(states, 0, axis=1))))


class _Scorer(Module):
    def __init__(self, config: VisionConfig, raw: Raw, dialect: Dialect) -> None:
        super().__init__()
        self.vilt = _Vilt(config, raw, dialect)
        self.rank_output = Linear(config.tower.hidden_size, 1, rows=1)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, pixel_values: ir.Value) -> ir.Value:
        return op.Squeeze(self.rank_output(op, self.vilt(op, input_ids, attention_mask, pixel_values)), [1])


class Vilt(CrossEncoder):
    """`model_type` vilt, with the head for retrieval (`ViltForImageAndTextRetrieval`)."""

    image_processor = "ViltImageProcessor"
    renames = (
        (r"^(vilt\.encoder\.layer)\.", r"\1s."),
        (r"\.layernorm_before\.", ".layer_norm1."),
        (r"\.layernorm_after\.", ".layer_norm2."),
        (r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r".self_attn.\1_proj."),
        (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    )
    unused = (r".*\.position_ids", r".*\.token_type_ids")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        named = config.get("architectures") or ["ViltForImageAndTextRetrieval"]
        if "ViltForImageAndTextRetrieval" not in named:
            raise UnsupportedConfigError(
                f"architectures {', '.join(named)}: of ViLT the head for retrieval is built, "
                "ViltForImageAndTextRetrieval, which scores an image and a text"
            )
        require(config, [("qkv_bias", True), ("max_image_length", -1)])
        self._raw = {**_DEFAULTS, **config}
        self._config = VisionConfig.read(self._raw, {})

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the text side."""
        return PairTexts(int(self._raw["vocab_size"]), int(self._raw["max_position_embeddings"]))

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        patch = self._config.patch_size_px
        if not isinstance(spec.geometry, ShortestEdge) or spec.geometry.step_px % patch:
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the encoder takes whole patches of {patch} pixels: "
                "size_divisor must be a multiple of patch_size"
            )

    def pair(self, dialect: Dialect) -> Module:
        """Return encoder and head."""
        return _Scorer(self._config, self._raw, dialect)
