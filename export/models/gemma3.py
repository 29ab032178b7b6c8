"""Gemma 3 (arXiv 2503.19786): a SigLIP tower, squares of patches averaged, a decoder whose images look forward."""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.gemma3 import Gemma3Prompt
from bundle.layouts.prompt import LooksAhead
from export.config import Raw, VisionConfig, sub_config
from export.connectors.mean_pool import MeanPool
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.siglip import VISION_DEFAULTS, NormedSiglipTower
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {"tie_word_embeddings": True, "mm_tokens_per_image": 256}
_START = "<start_of_image>"
"""What chat templates write for an image; in a prompt it stands before the image's tokens."""


class Gemma3(VisionLanguage):
    """`model_type` gemma3."""

    text_prefix = "model.language_model"
    image_processor = "Gemma3ImageProcessor"
    template_placeholder = _START
    looks_ahead: ClassVar[LooksAhead] = Gemma3Prompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    )
    # the connector reads patches: what pools them for a dual encoder has no effect
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.head\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        num_tokens, grid = self.config["mm_tokens_per_image"], self._vision.grid
        self._side = isqrt(num_tokens)
        if self._side**2 != num_tokens or grid % self._side:
            raise UnsupportedConfigError(
                f"mm_tokens_per_image {num_tokens}: built are squares of numbers that divide the {grid} patches of an "
                "image's side"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config."""
        return {"model_type": "gemma3_text", **super().text_config}

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Squares of patches."""
        return int(self._side**2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        tower = self._vision.tower
        pool = MeanPool(
            self._vision.grid,
            self._vision.grid // self._side,
            tower.hidden_size,
            self.decoder.config.hidden_size,
            tower.layer_norm_eps,
            dialect,
            name="model.multi_modal_projector",
        )
        return Chain(NormedSiglipTower(self._vision, dialect, "model.vision_tower"), pool)

    def image_prompt(self, found: FoundProcessor) -> Gemma3Prompt:
        """Return the tokens of an image between a start and an end.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        stated = int(found.settings.get("image_seq_length", self.tokens_per_tile))
        if stated != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"image_seq_length {stated} of the processor, and mm_tokens_per_image {self.tokens_per_tile} of the "
                "model: each image would have another number of tokens than of features"
            )
        token = found.token("image_token", "<image_soft_token>")
        start, end = found.token("boi_token", _START), found.token("eoi_token", "<end_of_image>")
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        return Gemma3Prompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            start_token=start,
            end_token=end,
        )
