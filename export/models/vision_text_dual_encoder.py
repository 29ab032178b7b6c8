"""An image tower and a text tower of others, brought together by two projections (LiT, arXiv 2111.07991)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig, require, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.bert import ROBERTA_DEFAULTS, TEXT_DEFAULTS, BertConfig, PooledBert
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.pooler import FirstToken
from export.towers import clip, vit
from export.towers.dinov2 import Dinov2Tower, read_dinov2

_CLIP = "clip_vision_model"
_DINO = "dinov2"
_TOWERS: dict[str, Raw] = {_CLIP: clip.VISION_DEFAULTS, _DINO: {}, "vit": vit.VISION_DEFAULTS}
TEXTS: dict[str, Raw] = {
    "bert": TEXT_DEFAULTS,
    "camembert": ROBERTA_DEFAULTS,
    "roberta": ROBERTA_DEFAULTS,
    "xlm-roberta": ROBERTA_DEFAULTS,
}


class _PooledVit(vit.VitTower):
    """The tower, and what its class token became."""

    def __init__(self, config: VisionConfig, dialect: Dialect, *, qkv_bias: bool) -> None:
        super().__init__(config, dialect, "vision_model", qkv_bias=qkv_bias)
        self.pooler = FirstToken(config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.pooler(op, super().forward(op, pixel_values))


class _Vision(Module):
    def __init__(self, tower: Module, size: int, embedding_size: int) -> None:
        super().__init__()
        self.vision_model = tower
        self.visual_projection = Linear(size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.visual_projection(op, self.vision_model(op, pixel_values))


class _Text(Module):
    def __init__(self, tower: Module, size: int, embedding_size: int) -> None:
        super().__init__()
        self.text_model = tower
        self.text_projection = Linear(size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


class VisionTextDualEncoder(DualEncoder):
    """`model_type` vision-text-dual-encoder; `model_type` of the two parts says what they are."""

    scalars = ("logit_scale",)
    image_processor = ""
    """Its files name the class; the towers are of all kinds."""
    pads_to_max = False
    renames = ((r"^vision_model\.vision_model\.", "vision_model."),)
    unused = (*DualEncoder.unused, r".*\.embeddings\.token_type_ids", r"vision_model\.embeddings\.mask_token")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        images, self._tower_type = part(config, "vision_config", _TOWERS)
        texts, self._text_type = part(config, "text_config", TEXTS)
        require(images, [("pooler_act", "tanh"), ("pooler_output_size", images.get("hidden_size"))])
        self._vision = read_dinov2(images) if self._tower_type == _DINO else VisionConfig.read(images, {})
        self._qkv_bias = bool(images.get("qkv_bias", True))
        self._text = BertConfig.read(texts, {}, counts_behind_padding=self._text_type != "bert")
        self._embedding_size = int(config.get("projection_dim", 512))

    @property
    def image_size_px(self) -> int | None:
        """Side of the input; None where positions follow an image's shape."""
        return None if self._tower_type == _DINO else self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self._embedding_size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        if self._tower_type == _CLIP:
            return clip.ProjectedClipTower(self._vision, dialect, self._embedding_size)
        tower: Module = _PooledVit(self._vision, dialect, qkv_bias=self._qkv_bias)
        if self._tower_type == _DINO:
            tower = Dinov2Tower(read_dinov2(self.config["vision_config"]), dialect, "vision_model")
        return _Vision(tower, self._vision.tower.hidden_size, self._embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Text(PooledBert(self._text, dialect, "text_model"), self._text.tower.hidden_size, self._embedding_size)


def part(config: Raw, key: str, known: dict[str, Raw]) -> tuple[Raw, str]:
    """Return a tower's config with every key, and its type.

    Raises:
        UnsupportedConfigError: A type that is not built.
    """
    raw = sub_config(config, key)
    model_type = str(raw.get("model_type"))
    if model_type not in known:
        raise UnsupportedConfigError(f"{key}.model_type is {model_type!r}; built are {', '.join(sorted(known))}")
    return {**known[model_type], **raw}, model_type
