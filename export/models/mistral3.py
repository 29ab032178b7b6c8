"""Mistral 3 (Mistral Small 3.1, Ministral 3): Pixtral's tower (arXiv 2410.07073), squares of its patches merged."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, LongestEdge
from bundle.layouts.pixtral import PixtralPrompt
from export.config import Raw, sub_config
from export.connectors.merged_projector import MergedProjector, MergedSizes
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.pixtral import PixtralConfig, PixtralTower
from export.vision_language import VisionLanguage

TOWER = "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"
_DEFAULTS: Raw = {
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": False,
    "spatial_merge_size": 2,
    "tie_word_embeddings": True,
}
_WITHOUT_ENDS = ("LightOnOcrProcessor", "LightOnOCRProcessor")
"""Processors that write an image's tokens alone: LightOnOCR was first published as a checkpoint of this type."""


class PixtralModel(VisionLanguage):
    """A model of Pixtral's tower, whose images keep their shape.

    Class attributes:
        image_token: What the vocabulary calls it where no file says.
        processor_scales: The model's processor tells its image processor the side of the square that becomes a token,
            whatever the files say.
    """

    text_prefix = "model.language_model"
    image_processor = "PixtralImageProcessor"
    image_token: ClassVar[str] = "[IMG]"
    processor_scales: ClassVar[bool] = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._whole_tower = PixtralConfig.read(sub_config(config, "vision_config"))
        self.merged = int(config.get("spatial_merge_size", 1))
        self.tower = replace(self._whole_tower, num_layers=self._layer_read())

    def _layer_read(self) -> int:
        """Return which hidden state feeds the connector; 0 is the input of the first layer.

        Raises:
            UnsupportedConfigError: There is no such one, or several are named.
        """
        stated, depth = self.config.get("vision_feature_layer", -1), self._whole_tower.num_layers
        (layer,) = stated if isinstance(stated, list) and len(stated) == 1 else (stated,)
        if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise UnsupportedConfigError(
                f"vision_feature_layer {stated!r}: one hidden state is read, of {-depth - 1} to {depth}"
            )
        return layer % (depth + 1)

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as squares of patches."""
        return

    @property
    def unit_px(self) -> int:
        """Side of the square that becomes one token."""
        return self.tower.patch_px * self.merged

    @property
    def image_settings(self) -> Raw:
        """The side of a token's square, where the model's processor tells it."""
        return {"patch_size": self.unit_px} if self.processor_scales else {}

    @property
    def steps_px(self) -> tuple[int, ...]:
        """What the sides of images may be multiples of."""
        return (self.unit_px,)

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry = spec.geometry
        if not isinstance(geometry, LongestEdge) or geometry.step_px not in self.steps_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}, the vision tower takes squares of "
                f"{' or '.join(map(str, self.steps_px))} pixels: patch_size of the image processor must be that of "
                "vision_config, or as many of them as spatial_merge_size says"
            )

    def skipped(self) -> tuple[str, ...]:
        """Return the unused keys, with the tower's layers above the one that is read."""
        above = range(self.tower.num_layers, self._whole_tower.num_layers)
        return (*super().skipped(), *(rf"{re.escape(TOWER)}\.transformer\.layers\.{layer}\..*" for layer in above))

    def ends(self, found: FoundProcessor) -> tuple[str, str]:
        """Return the tokens that end a row and an image."""
        return found.token("image_break_token", "[IMG_BREAK]"), found.token("image_end_token", "[IMG_END]")

    def image_prompt(self, found: FoundProcessor) -> PixtralPrompt:
        """Return one image token for each square, in rows.

        Raises:
            UnsupportedConfigError: The processor counts other squares, or a token is not in the vocabulary.
        """
        patch, merged = (
            int(found.settings.get(key, own))
            for key, own in (("patch_size", self.tower.patch_px), ("spatial_merge_size", self.merged))
        )
        if patch * merged != self.unit_px:
            raise UnsupportedConfigError(
                f"processor_config.json: patch_size {patch} and spatial_merge_size {merged} make tokens of "
                f"{patch * merged} pixels a side, the model's are of {self.unit_px}"
            )
        token, (row_end, image_end) = found.token("image_token", self.image_token), self.ends(found)
        for text, what in ((row_end, "a row of an image"), (image_end, "an image")):
            if text:
                found.vocabulary.id_of(text, f"the token that ends {what}")
        height, width = found.spec.tile_size_px
        return PixtralPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(height // self.unit_px) * (width // self.unit_px),
            step_px=self.unit_px,
            break_token=row_end,
            end_token=image_end,
        )


class Mistral3(PixtralModel):
    """`model_type` mistral3.

    Class attributes:
        crops: Images may have patches that are part of no square.
    """

    default_text = "mistral"
    crops: ClassVar[bool] = False

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})

    def ends(self, found: FoundProcessor) -> tuple[str, str]:
        """Return the tokens that end a row and an image; empty where the processor writes none."""
        return ("", "") if any(map(found.is_of, _WITHOUT_ENDS)) else super().ends(found)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        config, decoder, tower = self.config, self.decoder.config, self.tower
        sizes = MergedSizes(
            in_size=tower.hidden_size,
            out_size=decoder.hidden_size,
            factor=self.merged,
            eps=decoder.rms_norm_eps,
            hidden_act=config["projector_hidden_act"],
            bias=bool(config["multimodal_projector_bias"]),
        )
        rows = tower.usual_rows // self.merged**2
        projector = MergedProjector(sizes, dialect, rows=rows, crops=self.crops, name=PROJECTOR)
        return Chain(PixtralTower(tower, dialect, TOWER), projector)
