"""ColModernVBERT (Teiletche et al., arXiv 2510.01149): ModernBERT reads tiles of SigLIP's; a vector for every token.

What stands in the place of a decoder looks both ways and keeps nothing: the bundle has no states.
"""

from __future__ import annotations

import json
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.layouts.modernvbert import ModernVBertPrompt
from bundle.layouts.prompt import ImagePrompt
from export.config import Raw, sub_config
from export.connectors.pixel_shuffle import PixelShuffle
from export.embedding import Head, StateVectors
from export.found_processor import FoundProcessor
from export.models.idefics3 import Idefics3
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.modernbert import ModernBertConfig, ModernBertLayers
from export.nn.module import Module
from export.towers.siglip import VISION_DEFAULTS, NormedSiglipTower
from export.two_way import EncoderSizes, TwoWayEmbedder, around_text

_TEXT = "vlm.text_model"
_HEAD = "embedding_proj_layer"
_NUM_AUGMENTING = 10
"""Tokens behind a query, whose vectors look for what the query does not say."""
_END = "<end_of_utterance>"
_TEMPLATE = (
    "{%% for message in messages if message.role != 'system' %%}{%% for part in message.content %%}%(before)s"
    "{%% if part.type == 'image' %%}%(visual)s{%% else %%}%(query)s{{ part.text }}%(behind)s{%% endif %%}%(after)s"
    "{%% endfor %%}{%% endfor %%}"
)


class _Vision(Module):
    def __init__(self, family: ColModernVBert, dialect: Dialect) -> None:
        super().__init__()
        config, size = family.tower, family.state_size
        self.tower = NormedSiglipTower(config, dialect, "vlm.vision_model")
        width = config.tower.hidden_size
        self.connector = PixelShuffle(config.grid, width, size, family.factor, name="vlm.connector")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.connector(op, self.tower(op, pixel_values))


class _Text(Module):
    """Words and features, normed together, to states."""

    def __init__(self, config: ModernBertConfig, dialect: Dialect) -> None:
        super().__init__(_TEXT)
        self.norm = config.norm("embeddings.norm")
        self.stack = ModernBertLayers(config, dialect)

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value, bias: ir.Value) -> ir.Value:
        return self.stack(op, self.norm(op, x), position_ids, bias)


class ColModernVBert(TwoWayEmbedder, Idefics3):
    """`model_type` colmodernvbert, as transformers keeps it.

    Attributes:
        tower: Of images.
        factor: Side of the squares of patches that become one token.
    """

    text_prefix = _TEXT
    can_take_smaller_images = False
    looks_ahead = ModernVBertPrompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"(connector\.modality_projection)\.weight$", r"\1.proj.weight"),
    )
    unused = (*Idefics3.unused, r"vlm\.vision_model\.head\..*")

    def __init__(self, config: Raw) -> None:
        vlm = sub_config(config, "vlm_config")
        vision = {**VISION_DEFAULTS, **sub_config(vlm, "vision_config")}
        super().__init__({**vlm, "vision_config": vision, "scale_factor": vlm.get("pixel_shuffle_factor", 4)})
        self.tower, self.factor = self._vision, self._factor
        self._text = ModernBertConfig.read(self.text_config)
        self.vectors = StateVectors("tokens", Head(_HEAD, int(config.get("embedding_dim", 128)), has_bias=True))
        self.embedding = self.vectors

    @property
    def sizes(self) -> EncoderSizes:
        """Of ModernBERT."""
        return EncoderSizes(self._text.vocab_size, self._text.tower.hidden_size, self._text.max_tokens)

    def encoder(self, dialect: Dialect) -> Module:
        """Return ModernBERT behind its table."""
        return _Text(self._text, dialect)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        return _Vision(self, dialect)

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], not yet normed."""
        return Embedding(self.vocab_size, self.state_size, name=f"{_TEXT}.embeddings.tok_embeddings")

    def image_prompt(self, found: FoundProcessor) -> ModernVBertPrompt:
        """Return tiles with markers between fake tokens.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        return ModernVBertPrompt(**super().image_prompt(found).model_dump(exclude={"kind"}))

    def around_query(self, found: FoundProcessor) -> tuple[str, str]:
        """Return what stands before a text and behind it.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        found.vocabulary.id_of(_END, "the token behind a query")
        return found.settings.get("query_prefix") or "", _END * _NUM_AUGMENTING

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return an image before the wish to describe it, and a text as a query, as the processor writes both."""
        before, after = around_text(found)
        query, behind = self.around_query(found)
        visual = f"<|begin_of_text|>User:{prompt.image_token}Describe the image.{_END}\nAssistant:"
        pieces = {
            "before": before,
            "visual": found.settings.get("visual_prompt_prefix") or visual,
            "query": query,
            "behind": behind,
            "after": after,
        }
        return _TEMPLATE % {name: f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for name, text in pieces.items()}
