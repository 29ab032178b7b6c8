"""KOSMOS-2 (arXiv 2306.14824): a CLIP tower, queries that look at it once, and a decoder that says boxes."""

from __future__ import annotations

import re
from collections.abc import Collection
from math import isqrt
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.grounding import PatchGrounding
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, VisionConfig, sub_config
from export.connectors.latent_queries import LatentQueries
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.spoken_tokens import document_markup
from export.towers.clip import VISION_DEFAULTS, ClipTower
from export.vision_language import VisionLanguage

_VISION_DEFAULTS: Raw = {
    **VISION_DEFAULTS,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
_TEXT = "kosmos_2_text_model"
_PATCH = re.compile(r"<patch_index_\d+>")
_TOWER = "vision_model.model"
_PLACE = "</chunk>"
"""In the places of an image's rows; of training on web pages, and in no prompt. The processor writes words there, which
the decoder never sees."""
# The processor writes the image and its marks, and no template comes with the checkpoint. A text goes on as it stands.
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.content is string %}"
    "{{ '' if loop.first else ' ' }}{{ message.content }}{% else %}"
    "{% set images = message.content | selectattr('type', 'equalto', 'image') | list | length %}"
    "{% set said = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{{ '<image></chunk></image>' * images }}{{ ' ' if images or not loop.first }}{{ said or 'An image of' }}"
    "{% endif %}{% endfor %}"
)


class _Vision(Module):
    def __init__(self, tower: ClipTower, norm: LayerNorm, queries: LatentQueries) -> None:
        super().__init__()
        self.tower = tower
        self.norm = norm
        self.queries = queries

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.queries(op, self.norm(op, self.tower(op, pixel_values).states[-1]))


class Kosmos2(VisionLanguage):
    """`model_type` kosmos-2."""

    text_prefix = "text_model.model"
    image_processor = "CLIPImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^text_model\.lm_head\.", "lm_head."),)
    # the table of sines, which older releases stored
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"text_model\.model\.embed_positions\.weights")

    def __init__(self, config: Raw) -> None:
        super().__init__({"tie_word_embeddings": True, **config})
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), _VISION_DEFAULTS)

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config."""
        return {"model_type": _TEXT, **super().text_config}

    @property
    def image_size_px(self) -> int:
        """Side of an image."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """The queries."""
        return int(self.config.get("latent_query_num", 64))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, norm and queries."""
        sizes = self._vision.tower
        tower = ClipTower(self._vision, dialect, _TOWER)
        queries = LatentQueries(
            sizes.hidden_size,
            self.decoder.config.hidden_size,
            self.tokens_per_tile,
            self.decoder.config.num_heads,
            image_rows=tower.embeddings.num_rows,
            dialect=dialect,
            name="image_to_text_projection",
        )
        norm = LayerNorm(sizes.hidden_size, sizes.layer_norm_eps, name=f"{_TOWER}.post_layernorm")
        return _Vision(tower, norm, queries)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return a token once for every query; the template writes the marks around them.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        for mark in ("<image>", "</image>"):
            found.vocabulary.id_of(mark, "a mark around an image")
        place = found.vocabulary.id_of(_PLACE, "the token that stands for an image's rows")
        return LlavaPrompt(image_token=_PLACE, image_token_id=place, tokens_per_tile=self.tokens_per_tile)

    def grounding(self, found: FoundProcessor) -> PatchGrounding:
        """Return boxes by their corner patches.

        Raises:
            UnsupportedConfigError: The vocabulary has tokens of patches that are no square.
        """
        count = sum(_PATCH.fullmatch(token) is not None for token in found.vocabulary.ids)
        side = isqrt(count)
        if side < 1 or side * side != count:
            raise UnsupportedConfigError(f"tokenizer.json has {count} tokens <patch_index_...>; a square of patches")
        return PatchGrounding(side=side)

    def default_template(self, found: FoundProcessor) -> str:
        """Return the prompts that the processor writes; an image alone is described."""
        return _TEMPLATE

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the marks of phrases and objects and the places of boxes, without those of images."""
        marks = document_markup(found.vocabulary, prompt, ends)
        return [mark for mark in marks if mark not in ("<image>", "</image>")]
