"""LFM2-VL (arXiv 2511.23404): a SigLIP 2 tower over images of any shape, squares of patches, and an LFM2 decoder."""

from __future__ import annotations

from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, SplitArea
from bundle.layouts.lfm2_vl import Lfm2VLPrompt, tile_marker
from export.config import Raw, require, sub_config
from export.connectors.unshuffled_projector import UnshuffledProjector
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.siglip2_naflex import NaflexConfig, NaflexTower
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 2560,
    "projector_bias": True,
    "projector_use_layernorm": True,
    "downsample_factor": 2,
}
_USUAL_TOKENS = 256
"""Of a tile, and of the largest image that is not cut."""


class Lfm2VL(VisionLanguage):
    """`model_type` lfm2_vl."""

    text_prefix = "model.language_model"
    image_processor = "Lfm2VlImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),)
    # patches are read, never the tower's pooling of them
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.head\..*")

    def __init__(self, config: Raw) -> None:
        tied = config.get("tie_embedding", config.get("tie_word_embeddings", True))
        super().__init__({**_DEFAULTS, **config, "tie_word_embeddings": tied})
        vision = sub_config(config, "vision_config")
        require(vision, [("model_type", "siglip2_vision_model")])
        self._tower = NaflexConfig.read(vision)
        self._factor = int(self.config["downsample_factor"])

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, which is an LFM2 where it says nothing."""
        return {"model_type": "lfm2", **super().text_config}

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the config ties them."""
        return super().stand_ins() if self.config["tie_word_embeddings"] else {}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as squares of patches."""
        return

    @property
    def _unit_px(self) -> int:
        """Side of the square that becomes one token."""
        return self._tower.patch_px * self._factor

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares of patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry = spec.geometry
        if not isinstance(geometry, SplitArea) or (geometry.step_px, geometry.patch_px) != (
            self._unit_px,
            self._tower.patch_px,
        ):
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}, the vision tower takes squares of {self._factor} x "
                f"{self._factor} patches of {self._tower.patch_px} pixels: encoder_patch_size and downsample_factor of "
                "the processor must be vision_config.patch_size and downsample_factor of the model"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projector."""
        config, factor = self.config, self._factor
        width = self._tower.layers.hidden_size
        projector = UnshuffledProjector(
            (width, config["projector_hidden_size"], self.decoder.config.hidden_size),
            factor,
            config["projector_hidden_act"],
            rows=_USUAL_TOKENS,
            bias=bool(config["projector_bias"]),
            has_norm=bool(config["projector_use_layernorm"]),
            name="model.multi_modal_projector",
        )
        tower = NaflexTower(self._tower, dialect, "model.vision_tower", rows=_USUAL_TOKENS * factor**2)
        return Chain(tower, projector)

    def image_prompt(self, found: FoundProcessor) -> Lfm2VLPrompt:
        """Return tiles with markers, then the whole image.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary, or the processor writes none around images.
        """
        if not found.settings.get("use_image_special_tokens", True):
            raise UnsupportedConfigError(
                "processor_config.json: use_image_special_tokens is false; built are images between their tokens"
            )
        token, vocabulary = found.token("image_token", "<image>"), found.vocabulary
        start = found.token("image_start_token", "<|image_start|>")
        end = found.token("image_end_token", "<|image_end|>")
        thumbnail = found.token("image_thumbnail_token", "<|img_thumbnail|>")
        for text, what in ((start, "before an image"), (end, "behind an image"), (thumbnail, "before a whole image")):
            vocabulary.id_of(text, f"the token {what}")
        geometry = found.spec.geometry
        if isinstance(geometry, SplitArea) and geometry.most_tiles > 1:
            vocabulary.id_of(tile_marker(1, geometry.most_tiles), "the token before the last tile of the widest grid")
        return Lfm2VLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(found.spec.tile_size_px[0] // self._unit_px) ** 2,
            start_token=start,
            end_token=end,
            thumbnail_token=thumbnail,
            step_px=self._unit_px,
        )
