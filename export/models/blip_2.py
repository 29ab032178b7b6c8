"""BLIP-2 (arXiv 2301.12597): an EVA-CLIP tower, a Q-Former, and an OPT."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from export.config import Raw, VisionConfig, require, sub_config
from export.connectors.qformer import QFormer, QFormerConfig
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.blip_2 import VISION_DEFAULTS, Blip2Tower
from export.vision_language import VisionLanguage

_ENCODER_DECODERS = ("t5", "mt5", "bart")
# No template comes with the checkpoints. The questions are those of section 4.2, and what is asked first is asked
# first again; an image alone is described. Images stand before the token that begins a text.
_TEMPLATE = (
    "{% for message in messages %}{% if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}{{ bos_token }}"
    "{% for message in messages %}{% set parts = message.content %}"
    "{% set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') | map(attribute='text') "
    "| join %}{% if text %}{% if not loop.first %}{{ ' ' }}{% endif %}"
    "{% if message.role == 'user' %}Question: {{ text }} Answer:{% else %}{{ text }}{% endif %}{% endif %}"
    "{% endfor %}"
)


class _Vision(Module):
    def __init__(self, tower: Blip2Tower, queries: QFormer) -> None:
        super().__init__()
        self.tower = tower
        self.queries = queries

    def forward(self, op: OpBuilder, pixel_values: ir.Value, question_ids: ir.Value | None = None) -> ir.Value:
        return self.queries(op, self.tower(op, pixel_values), question_ids)


class Blip2(VisionLanguage):
    """`model_type` blip-2, with a decoder alone behind its queries."""

    text_prefix = "language_model.model.decoder"
    default_text = "opt"
    image_processor = "BlipImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^language_model\.lm_head\.", "lm_head."),)

    def __init__(self, config: Raw) -> None:
        super().__init__({"tie_word_embeddings": True, **config})
        kind = self.text_config["model_type"]
        if kind in _ENCODER_DECODERS:
            raise UnsupportedConfigError(
                f"text_config.model_type {kind!r} is an encoder with a decoder; built behind a Q-Former are decoders "
                "alone, such as opt"
            )
        vision = {**VISION_DEFAULTS, **sub_config(config, "vision_config")}
        require(vision, [("qkv_bias", True)])
        self._vision = VisionConfig.read(vision, VISION_DEFAULTS)
        self._queries = self._read_queries(sub_config(config, "qformer_config"))

    def _read_queries(self, raw: Raw) -> QFormerConfig:
        return QFormerConfig.read(raw, self._vision.tower.hidden_size, int(self.config.get("num_query_tokens", 32)))

    @property
    def image_size_px(self) -> int:
        """Side of an image."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """The queries."""
        return self._queries.num_queries

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and Q-Former."""
        tower = Blip2Tower(self._vision, dialect, "vision_model")
        width = self.decoder.config.hidden_size
        return _Vision(tower, QFormer(self._queries, width, image_rows=tower.num_rows, dialect=dialect, name=""))

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token once for every query.

        Raises:
            UnsupportedConfigError: The processor counts other queries, or the token is not in the vocabulary.
        """
        stated = found.settings.get("num_query_tokens")
        if stated is not None and int(stated) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: num_query_tokens {stated}, and config.json has {self.tokens_per_tile}"
            )
        token = found.token("image_token", "<image>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return prompts of questions and answers, or of an image alone, whose caption is the answer."""
        return _TEMPLATE
