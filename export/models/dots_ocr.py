"""dots.ocr (arXiv 2512.02498) in its authors' layout: a large tower over images of any shape before a Qwen2."""

from __future__ import annotations

from typing import ClassVar

from bundle.layouts.prompt import ImagePrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, require, sub_config
from export.connectors.patch_merger import PatchMerger
from export.found_processor import FoundProcessor
from export.models.qwen2_vl import AnyShape
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.dots_ocr import DotsTower, DotsTowerConfig

_TOWER = "vision_tower"
_MERGER_EPS = 1e-6
"""Of the merger's norm, whatever the config says of the others."""
_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}<|system|>{% elif message.role == 'user' %}<|user|>"
    "{% else %}<|assistant|>{% endif %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|img|><|imgpad|><|endofimg|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}{% if message.role == 'system' %}<|endofsystem|>\n"
    "{% elif message.role == 'user' %}<|endofuser|>{% else %}<|endofassistant|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As the checkpoint's own, for a folder without it."""


class DotsOcr(AnyShape):
    """`model_type` dots_ocr; its config is a Qwen2's with `vision_config` beside."""

    text_prefix = "model"
    text_type = "qwen2"
    image_token = "<|imgpad|>"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (rf"^({_TOWER}\.blocks\.\d+\.)attn\.qkv_proj\.", r"\1attn.qkv."),
        (rf"^({_TOWER}\.blocks\.\d+\.)attn\.out_proj\.", r"\1attn.proj."),
        (rf"^({_TOWER}\.blocks\.\d+\.mlp\.)fc1\.", r"\1gate_proj."),
        (rf"^({_TOWER}\.blocks\.\d+\.mlp\.)fc3\.", r"\1up_proj."),
        (rf"^({_TOWER}\.blocks\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("quantization_config", None)])

    @property
    def text_config(self) -> Raw:
        """The config without the tower; `attention_bias` says what Qwen2's biases are anyway."""
        without = ("vision_config", "attention_bias")
        return {**{key: value for key, value in self.config.items() if key not in without}, "model_type": "qwen2"}

    @property
    def tower(self) -> DotsTowerConfig:
        """Sizes of the tower."""
        return DotsTowerConfig.read(sub_config(self.config, "vision_config"))

    @property
    def given_width(self) -> int:
        """The decoder's width by the tower's config."""
        return self.tower.out_size

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and merger."""
        config = self.tower
        merger = PatchMerger(
            LayerNorm(config.hidden_size, _MERGER_EPS),
            config.hidden_size,
            config.out_size,
            config.merged,
            rows=config.usual_rows // config.merged**2,
            name=f"{_TOWER}.merger",
        )
        return Chain(DotsTower(config, dialect, _TOWER), merger)

    def image_text(self, prompt: ImagePrompt) -> str:
        """Return the image token between those that open and close an image."""
        return f"<|img|>{prompt.image_token}<|endofimg|>"

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return one image token for each square of patches, all on one axis.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        return super().image_prompt(found).model_copy(update={"is_flat": True})

    def default_template(self, found: FoundProcessor) -> str:
        """Return conversations as the checkpoint's own template writes them."""
        return _TEMPLATE
