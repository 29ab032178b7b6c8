"""Checkpoints of open_clip (github.com/mlfoundations/open_clip): `open_clip_config.json`, and keys of its own.

The tokenizer is that of the folder. open_clip repairs broken encodings and HTML entities in texts before; a bundle does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, Fixed, ImageSpec
from export.cleaning import CLEANINGS
from export.config import Raw, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.eva02 import EVA02S, Eva02, Eva02Config
from export.towers.fastvit_config import FASTVITS, FastViTConfig
from export.towers.mobileclip import MobileClip, read_fastvit
from export.towers.open_clip import OpenClipTower, OpenClipVisionConfig
from export.towers.open_clip_text import HfText, HfTextConfig, OpenClipText, OpenClipTextConfig
from export.towers.timm_vit import TIMM_VITS, TimmVit, TimmVitConfig
from export.towers.vitamin import VITAMINS, Vitamin, VitaminConfig

_PREPROCESSING: Mapping[str, Any] = {
    "mode": "RGB",
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_PAD_ID = 0
"""What open_clip's own tokenizer writes behind a text."""


class _Towers(Module):
    """A tower under its own name."""

    def __init__(self, tower: Module, name: str) -> None:
        super().__init__()
        setattr(self, name, tower)
        self.tower_name = name

    def forward(self, op: Any, *inputs: Any) -> Any:
        return getattr(self, self.tower_name)(op, *inputs)


_TimmConfig = Eva02Config | FastViTConfig | TimmVitConfig | VitaminConfig


def _timm(images: Raw) -> _TimmConfig:
    """Return the tower that timm's name stands for.

    Raises:
        UnsupportedConfigError: It is not built, or for images of another size.
    """
    name, side = str(images["timm_model_name"]), images.get("image_size", 224)
    built: dict[str, _TimmConfig] = {**EVA02S, **FASTVITS, **TIMM_VITS, **VITAMINS}
    if name in FASTVITS:
        return read_fastvit(images)
    if name not in built:
        raise UnsupportedConfigError(f"vision_cfg.timm_model_name is {name!r}; built are {', '.join(sorted(built))}")
    if built[name].image_size_px != side:
        raise UnsupportedConfigError(f"vision_cfg.image_size is {side!r}; {name} takes {built[name].image_size_px}")
    return built[name]


class OpenClip(DualEncoder):
    """`open_clip_config.json`: towers of open_clip's own, towers of timm's, text towers of transformers'."""

    renames = (
        (r"^(transformer|token_embedding|ln_final)\.", r"text.\1."),
        (r"^(positional_embedding|text_projection)(\.|$)", r"text.\1\2"),
    )
    """A model without `custom_text` keeps its text tower at the top."""
    unused = (
        *DualEncoder.unused,
        r"text_decoder\..*",
        r"(text\.)?attn_mask",
        r"text\.transformer\.pooler\..*",
        r"visual\.trunk\..*\.num_batches_tracked",
    )
    """CoCa's decoder, which writes captions, a pooler that mean and first token pass by, and batches of training."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._model = sub_config(config, "model_cfg")
        quick = bool(self._model.get("quick_gelu", False))
        images, texts = sub_config(self._model, "vision_cfg"), sub_config(self._model, "text_cfg")
        self._images = images
        self._vision = (
            _timm(images) if images.get("timm_model_name") else OpenClipVisionConfig.read(images, quick=quick)
        )
        self._text = (
            HfTextConfig.read(texts) if texts.get("hf_model_name") else OpenClipTextConfig.read(texts, quick=quick)
        )
        self._read_tokenizer(texts)
        has_bias = self._model.get("init_logit_bias") is not None
        self.scalars = ("logit_scale", "logit_bias") if has_bias else ("logit_scale",)
        self._scoring: Literal["softmax", "sigmoid"] = "sigmoid" if has_bias else "softmax"

    def _read_tokenizer(self, texts: Raw) -> None:
        options = dict(texts.get("tokenizer_kwargs") or {})
        self.cleans = options.pop("clean", "whitespace") if texts.get("hf_tokenizer_name") else None
        if options or texts.get("tokenizer_mode"):
            mode = texts.get("tokenizer_mode")
            raise UnsupportedConfigError(
                f"text_cfg.tokenizer_kwargs {options!r}, tokenizer_mode {mode!r}; only tokenizer_kwargs.clean is built"
            )
        if self.cleans not in (None, *CLEANINGS):
            raise UnsupportedConfigError(
                f"text_cfg.tokenizer_kwargs.clean is {self.cleans!r}; built are {', '.join(CLEANINGS)}"
            )
        self.pads_to_max = isinstance(self._text, OpenClipTextConfig) and self._text.reads_padding
        self.pad_token_id = None if texts.get("hf_tokenizer_name") else _PAD_ID

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        text = self._text
        vocab_size = text.vocab_size if isinstance(text, OpenClipTextConfig) else text.bert.vocab_size
        return TextTower(int(self._model["embed_dim"]), vocab_size, text.context_length, self._scoring)

    def own_image_spec(self) -> ImageSpec:
        """Return the preprocessing of `preprocess_cfg`, as torchvision does it.

        Raises:
            UnsupportedConfigError: A setting that is not reproduced.
        """
        given = {key: value for key, value in (self.config.get("preprocess_cfg") or {}).items() if value is not None}
        settings, side = {**_PREPROCESSING, **given}, self.image_size_px
        mode, kind = settings["resize_mode"], settings["interpolation"]
        if mode not in ("shortest", "squash") or kind not in ("bicubic", "bilinear") or settings["mode"] != "RGB":
            raise UnsupportedConfigError(
                f"preprocess_cfg: mode {settings['mode']!r}, resize_mode {mode!r}, interpolation {kind!r}; built are "
                "RGB, shortest and squash, bicubic and bilinear"
            )
        fixed = Fixed(height_px=side, width_px=side)
        cropped = Cropped(shortest_edge_px=side, height_px=side, width_px=side, rounds_half_to_even=True)
        return ImageSpec(
            geometry=fixed if mode == "squash" else cropped,
            resample=kind,
            rescale_factor=1 / 255,
            mean=settings["mean"],
            std=settings["std"],
        )

    def vision(self, dialect: Dialect) -> Module:
        """Return the image tower."""
        size = self.text_tower.embedding_size
        return _Towers(self._image_tower(dialect, size), "visual")

    def _image_tower(self, dialect: Dialect, size: int) -> Module:
        config, raw = self._vision, self._images
        if isinstance(config, Eva02Config):
            return Eva02(config, raw, dialect, size)
        if isinstance(config, FastViTConfig):
            return MobileClip(config, raw, dialect, size)
        if isinstance(config, TimmVitConfig):
            return TimmVit(config, raw, dialect, size)
        if isinstance(config, VitaminConfig):
            return Vitamin(config, raw, dialect, size)
        return OpenClipTower(config, dialect, size)

    def text(self, dialect: Dialect) -> Module:
        """Return the text tower."""
        size = self.text_tower.embedding_size
        if isinstance(self._text, OpenClipTextConfig):
            return _Towers(OpenClipText(self._text, dialect, size), "text")
        return _Towers(HfText(self._text, dialect, size), "text")
