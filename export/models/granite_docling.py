"""Granite Docling 500M: SigLIP's tower, squares with places, features of earlier layers, and a Granite; documents."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.granite_docling import GraniteDoclingPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, VisionConfig, sub_config
from export.connectors.granite_docling import DoclingConnector
from export.decoders.qwen3_vl_text import DEEP_LAYERS
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.spoken_tokens import document_markup
from export.towers.siglip import VISION_DEFAULTS, SiglipTower
from export.vision_language import VisionLanguage

_TOWER = "model.vision_model"
_VISION_DEFAULTS: Raw = {**VISION_DEFAULTS, "image_size": 512}
_TEXT_DEFAULTS: Raw = {
    "model_type": "granite_docling_text",
    "vocab_size": 133_800,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "embedding_multiplier": 12.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.263,
    "attention_multiplier": 0.015625,
}
_DEEP = (3, 7, 10)


class _Vision(Module):
    def __init__(self, tower: SiglipTower, norm: LayerNorm, connector: DoclingConnector, deep: tuple[int, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.norm = norm
        self.connector = connector
        self.deep = deep

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        passed = self.tower(op, pixel_values)
        deep = [passed.states[number + 1] for number in self.deep]
        return self.connector(op, self.norm(op, passed.states[-1]), deep)


class GraniteDocling(VisionLanguage):
    """`model_type` granite_docling, by the coarse way through its connector, which is its processor's default."""

    text_prefix = "model.text_model"
    image_processor = "GraniteDoclingImageProcessor"
    # the fine way, the router that advises it, and heads of serving engines
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.vision_model\.connector\.fine\..*",
        r"model\.density_router\..*",
        r"mtp\..*",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__({"tie_word_embeddings": True, **config})
        vision = sub_config(config, "vision_config")
        self._vision = VisionConfig.read(vision, _VISION_DEFAULTS)
        self._factor = int(vision.get("scale_factor", 4))
        if self._vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"vision_config.scale_factor {self._factor} does not divide the {self._vision.grid} patches of a "
                "tile's side"
            )
        self._deep = self._deep_layers(vision)
        size = self.decoder.config.hidden_size
        if vision.get("out_hidden_size", 1024) != size or size % 4:
            raise UnsupportedConfigError(
                f"vision_config.out_hidden_size {vision.get('out_hidden_size', 1024)} and text_config.hidden_size "
                f"{size}: wanted is one width, a multiple of 4"
            )

    def _deep_layers(self, vision: Raw) -> tuple[int, ...]:
        """Return which layers of the tower have features of their own in the decoder."""
        stated = vision.get("deepstack_visual_indexes")
        listed, depth = _DEEP if stated is None else tuple(stated), self._vision.tower.num_layers
        if len(set(listed)) != len(listed) or any(not 0 <= layer < depth for layer in listed):
            raise UnsupportedConfigError(
                f"vision_config.deepstack_visual_indexes {list(listed)}: the tower has layers 0 to {depth - 1}, each "
                "of which may be named once"
            )
        return tuple(sorted(listed))

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, with how many of its layers take features of the tower's."""
        stated = sub_config(self.config, "vision_config").get("deepstack_visual_indexes")
        num_deep = len(_DEEP if stated is None else stated)
        return {**_TEXT_DEFAULTS, **super().text_config, DEEP_LAYERS: num_deep}

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Squares of patches."""
        return int((self._vision.grid // self._factor) ** 2)

    @property
    def feature_size(self) -> int:
        """Width of a row of features: those of earlier layers stand behind the decoder's own."""
        return int(self.decoder.config.hidden_size * (1 + len(self._deep)))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, norm and connector."""
        sizes, width = self._vision.tower, self.decoder.config.hidden_size
        norm = LayerNorm(sizes.hidden_size, sizes.layer_norm_eps, name=f"{_TOWER}.post_layernorm")
        connector = DoclingConnector(
            self._vision.grid, sizes.hidden_size, width, self._factor, len(self._deep), name=f"{_TOWER}.connector"
        )
        return _Vision(SiglipTower(self._vision, dialect, _TOWER), norm, connector, self._deep)

    def image_prompt(self, found: FoundProcessor) -> GraniteDoclingPrompt:
        """Return tiles with markers between fake tokens.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        stated = found.settings.get("image_seq_len")
        if stated is not None and int(stated) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: image_seq_len {stated}, and the tower makes {self.tokens_per_tile} tokens of "
                "a tile"
            )
        token, fake, whole = found.token("image_token", "<image>"), "<fake_token_around_image>", "<global-img>"
        found.vocabulary.id_of(fake, "the token around images")
        found.vocabulary.id_of(whole, "the token before the whole image")
        return GraniteDoclingPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            fake_token=fake,
            global_token=whole,
        )

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the markup of documents."""
        return document_markup(found.vocabulary, prompt, ends)
