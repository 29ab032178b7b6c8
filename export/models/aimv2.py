"""AIMv2 (arXiv 2411.14402): its towers of images and texts, tuned to one space, and its image tower by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.image_embedder import ImageEmbedder
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.vit import TextEmbeddings, attention_bias
from export.towers.aimv2 import Aimv2Layers, Aimv2Sizes, Aimv2VisionConfig, PooledAimv2Tower

_TEXT_DEFAULTS: Raw = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "max_position_embeddings": 77,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": 49_407,
}
_PATCHES = (r"(^|\.)embeddings\.patch_embed\.", r"\1embeddings.patch_embedding.")


def _read_vision(raw: Raw) -> Aimv2VisionConfig:
    """Return the tower of a vision config.

    Raises:
        UnsupportedConfigError: Positions are not learned.
    """
    if raw.get("is_native", False):
        raise UnsupportedConfigError(
            "is_native is true: positions of images of any shape (aimv2-large-patch14-native) are not built; export a "
            "checkpoint of one size, e.g. aimv2-large-patch14-448"
        )
    return Aimv2VisionConfig.read(raw)


class _Vision(Module):
    def __init__(self, config: Aimv2VisionConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.vision_model = PooledAimv2Tower(config, dialect, "vision_model", has_head=True)
        self.visual_projection = Linear(config.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.visual_projection(op, self.vision_model(op, pixel_values))


class _Texts(Module):
    """Looks back alone; what the end of a text became counts."""

    def __init__(self, raw: Raw, dialect: Dialect) -> None:
        super().__init__("text_model")
        sizes = Aimv2Sizes.read(raw)
        self.embeddings = TextEmbeddings(raw["vocab_size"], raw["max_position_embeddings"], sizes.hidden_size)
        self.encoder = Aimv2Layers(sizes, dialect, rows=self.embeddings.num_rows)
        self.rms_norm = sizes.norm(dialect)
        self.size, self.end = sizes.hidden_size, int(raw["eos_token_id"])

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=True)
        hidden = self.encoder(op, self.embeddings(op, input_ids), bias)
        is_end = op.Cast(op.Equal(input_ids, self.end), to=ir.DataType.INT64)
        return self.rms_norm(op, op.GatherND(hidden, op.ArgMax(is_end, axis=1, keepdims=1), batch_dims=1))


class _Text(Module):
    def __init__(self, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.text_model = _Texts(raw, dialect)
        self.text_projection = Linear(self.text_model.size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


class Aimv2(DualEncoder):
    """`model_type` aimv2 (aimv2-large-patch14-224-lit)."""

    scalars = ("logit_scale",)
    image_processor = "CLIPImageProcessor"
    pads_to_max = False
    renames: ClassVar[tuple[tuple[str, str], ...]] = (_PATCHES,)

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        vision = sub_config(config, "vision_config")
        if not vision.get("use_head", True):
            raise UnsupportedConfigError(
                "vision_config.use_head is false: without the head that pools patches an image has no vector"
            )
        self._vision = _read_vision(vision)
        self._text = {**_TEXT_DEFAULTS, **sub_config(config, "text_config")}
        if not isinstance(self._text["eos_token_id"], int):
            raise UnsupportedConfigError(
                f"text_config.eos_token_id is {self._text['eos_token_id']!r}; texts end at one token"
            )
        self._embedding_size = int(config.get("projection_dim", 512))

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self._embedding_size, int(vocab_size), int(longest), scoring="softmax")

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return what cosines are multiplied by, which training kept between 1 and `max_logit_scale`, and 0."""
        most = float(self.config.get("max_logit_scale", 100.0))
        return min(max(math.exp(scalar("logit_scale")), 1.0), most), 0.0

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, head and projection."""
        return _Vision(self._vision, dialect, self._embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Text(self._text, dialect, self._embedding_size)


class Aimv2Vision(ImageEmbedder):
    """`model_type` aimv2_vision_model: what its head pools, or the mean of its normed patches where it has none.

    Published towers have no head. transformers gives no vector of them, and the paper trains a head for each task
    (section 4.1); timm, which takes the same weights, has the mean.
    """

    image_processor = "CLIPImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        _PATCHES,
        (r"^(?:vision_model\.)?(embeddings|encoder|rms_norm|head)\.", r"tower.\1."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = _read_vision(config)

    @property
    def image_size_px(self) -> int:
        """Side of the input: positions are learned for one size."""
        return self._vision.vision.image_size_px

    @property
    def embedding_size(self) -> int:
        """The tower's width."""
        return self._vision.hidden_size

    def tower(self, dialect: Dialect, name: str) -> Module:
        """Return the tower, pooled."""
        return PooledAimv2Tower(self._vision, dialect, name, has_head=bool(self.config.get("use_head", True)))
