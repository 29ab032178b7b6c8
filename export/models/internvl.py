"""InternVL 2.5 and later (arXiv 2412.05271): an InternViT tower, pixel shuffle, two matrices, and a Qwen or Llama."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.internvl import InternVLPrompt
from export.config import Raw, require, sub_config
from export.connectors.shuffled_projector import ShuffledProjector
from export.decoders.decoder import Decoder
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.internvl import InternVLTower, InternVLTowerConfig
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {"tie_word_embeddings": True}
_VERSION, _FIXED = "rope_pos_id_version", "v2pe_fix"
_TAGS = "tile_tags"
"""Whether words before each tile say which one it is, as NVLM has them; InternVL's own configs say nothing of it."""


class InternVL(VisionLanguage):
    """`model_type` internvl."""

    text_prefix = "model.language_model"
    default_text = "qwen2"
    image_processor = "GotOcr2ImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(language_model|vision_tower|multi_modal_projector)\.", r"model.\1."),
    )
    # pictures are never masked
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.embeddings\.mask_token")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        require(config, [("vision_feature_layer", -1), ("vision_feature_select_strategy", "default")])
        self._has_tags = bool(config.get(_TAGS, False))
        self._tile_positions = self._read_positions()
        self.tower_config = InternVLTowerConfig.read(sub_config(config, "vision_config"))
        ratio = config.get("downsample_ratio", 0.5)
        self._factor = int(1 / ratio)
        if self._factor * ratio != 1 or self.tower_config.vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"downsample_ratio {ratio!r}: built are ratios 1/n with n dividing the {self.tower_config.vision.grid} "
                "patches of a tile's side"
            )

    def _read_positions(self) -> int | None:
        """Return how far a tile's tokens are together, as V2PE's configs have it; None: each is one position."""
        version, stride = self.config.get(_VERSION), self.config.get("rope_pos_id_stride")
        if version in (None, "default"):
            return None
        if version != _FIXED:
            raise UnsupportedConfigError(f"{_VERSION} {version!r}: built are default and {_FIXED}")
        if not isinstance(stride, int) or stride < 1:
            raise UnsupportedConfigError(
                f"rope_pos_id_stride {stride!r}: with {_VERSION} {_FIXED} wanted are the positions that a tile takes, "
                "1 at least"
            )
        return stride

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder, at parts of positions where the config has them.

        Raises:
            UnsupportedConfigError: As of other models; or its angles are not those of one position.
        """
        decoder = super().decoder
        if self._tile_positions is not None:
            if type(decoder).angles is not Decoder.angles:
                raise UnsupportedConfigError(
                    f"{_VERSION} {_FIXED}: text_config.model_type {self.text_config['model_type']!r} turns in another "
                    "way; positions in between are built of Llama, Qwen2 and Qwen3"
                )
            decoder.position_parts = self.tokens_per_tile
        return decoder

    @property
    def image_settings(self) -> Raw:
        """Tiles, always."""
        return {"crop_to_patches": True}

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self.tower_config.vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return int((self.tower_config.vision.grid // self._factor) ** 2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        vision = self.tower_config.vision
        projector = ShuffledProjector(
            vision.grid,
            vision.tower.hidden_size,
            self.decoder.config.hidden_size,
            self._factor,
            self.config.get("projector_hidden_act", "gelu"),
            name="model.multi_modal_projector",
        )
        return Chain(InternVLTower(self.tower_config, dialect, "model.vision_tower"), projector)

    def image_prompt(self, found: FoundProcessor) -> InternVLPrompt:
        """Return the tokens of all tiles between a start and an end.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        stated = found.settings.get("image_seq_length", self.config.get("image_seq_length"))
        if stated is not None and int(stated) != self.tokens_per_tile:
            vision = self.tower_config.vision
            raise UnsupportedConfigError(
                f"image_seq_length {stated}, but tiles of {vision.image_size_px} pixels in patches of "
                f"{vision.patch_size_px} with downsample_ratio 1/{self._factor} make {self.tokens_per_tile} tokens"
            )
        token = found.token("context_image_token", "<IMG_CONTEXT>")
        start, end = found.token("start_image_token", "<img>"), found.token("end_image_token", "</img>")
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        return InternVLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            start_token=start,
            end_token=end,
            has_tags=self._has_tags,
            tile_positions=self._tile_positions,
        )
