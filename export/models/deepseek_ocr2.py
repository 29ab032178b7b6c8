"""DeepSeek-OCR 2 (arXiv 2601.20552): SAM's tower, queries read by a Qwen2, a matrix, and a decoder of experts."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedWithTiles
from bundle.layouts.deepseek_ocr import DeepSeekOcrPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, require, sub_config
from export.connectors.line_end import LineEnd
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.spoken_tokens import document_markup
from export.towers.deepseek_ocr2 import QueryTower, QueryTowerConfig
from export.vision_language import VisionLanguage

_IMAGE = "<image>"
MARKS = ("<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>")
"""By which a question asks for boxes, and an answer tells them."""
TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""No template comes with a checkpoint: a prompt is an image, a line end and what is asked for, without roles."""
_SAM = r"\.sam_encoder\."
SAM_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.sam_model\.", "model.vision_tower.sam_encoder."),
    (rf"({_SAM})blocks\.(\d+)\.norm([12])\.", r"\1layers.\2.layer_norm\3."),
    (rf"({_SAM})blocks\.", r"\1layers."),
    (rf"({_SAM})patch_embed\.proj\.", r"\1patch_embed.projection."),
    (rf"({_SAM})neck\.0\.", r"\1neck.conv1."),
    (rf"({_SAM})neck\.1\.", r"\1neck.layer_norm1."),
    (rf"({_SAM})neck\.2\.", r"\1neck.conv2."),
    (rf"({_SAM})neck\.3\.", r"\1neck.layer_norm2."),
    (rf"({_SAM})net_2\.", r"\1proj.conv1."),
    (rf"({_SAM})net_3\.", r"\1proj.conv2."),
)
"""Of the names that the authors give to SAM's tower."""
TEXT_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"^model\.projector\.layers\.", "model.multi_modal_projector."),
    (r"^model\.view_seperator$", "model.view_separator"),
    (r"\.mlp\.gate\.", ".mlp.router."),
    (r"\.mlp\.shared_experts\.", ".mlp.shared_expert."),
)
"""Of theirs for the decoder and what stands before it, and of transformers' for a router and shared experts."""


class DeepSeekOcr2(VisionLanguage):
    """`model_type` deepseek_ocr2."""

    text_prefix = "model.language_model"
    default_text = "deepseek_ocr2_text"
    image_processor: ClassVar[str] = "DeepseekOcr2ImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *SAM_RENAMES,
        *TEXT_RENAMES,
        (r"^model\.qwen2_model\.model\.model\.", "model.vision_tower.vision_encoder."),
        (r"^model\.qwen2_model\.query_(768|1024)\.", r"model.vision_tower.query_\1_resolution."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(sub_config(config, "text_config"), [("tie_word_embeddings", False)])
        self.tower_config = QueryTowerConfig.read(sub_config(config, "vision_config"))

    @property
    def image_settings(self) -> Raw:
        """Tiles as transformers' processor asks for, whatever the files say."""
        return {"crop_to_patches": True, "min_patches": 2, "max_patches": 6}

    @property
    def image_size_px(self) -> None:
        """None: tiles are smaller than all of an image."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as queries look at it."""
        return

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images are squares of whole patches.

        Raises:
            UnsupportedConfigError: They are not.
        """
        geometry, patch_px = spec.geometry, self.tower_config.sam.sam.vision.patch_size_px
        if not isinstance(geometry, PaddedWithTiles) or geometry.whole_px % patch_px or geometry.tile_px % patch_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}; the tower takes squares of whole patches of {patch_px} px"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and matrix, and the row that ends an image."""
        config, size = self.tower_config, self.decoder.config.hidden_size
        tower = QueryTower(config, dialect, "model.vision_tower")
        rows = max(config.num_queries(config.sam.sam.vision.image_size_px), 1)
        projector = Linear(config.encoder.hidden_size, size, rows=rows, name="model.multi_modal_projector")
        return LineEnd(Chain(tower, projector, ""), size, name="model.view_separator")

    def image_prompt(self, found: FoundProcessor) -> DeepSeekOcrPrompt:
        """Return the tokens of tiles and of all of an image.

        Raises:
            UnsupportedConfigError: The processor counts others than the model makes, or the image token is not in the
                vocabulary.
        """
        geometry = found.spec.geometry
        if not isinstance(geometry, PaddedWithTiles):
            raise UnsupportedConfigError(f"the processor makes images by {geometry!r}")
        whole, tile = (self.counted(found, side) for side in (geometry.whole_px, geometry.tile_px))
        token = found.token("image_token", _IMAGE)
        return DeepSeekOcrPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=whole,
            tokens_of_tile=tile,
        )

    def counted(self, found: FoundProcessor, side_px: int) -> int:
        """Return how many tokens a square of a side takes.

        Raises:
            UnsupportedConfigError: The processor counts others than there are queries.
        """
        patch, ratio = found.settings.get("patch_size", 16), found.settings.get("downsample_ratio", 4)
        counted, made = math.ceil(side_px / patch / ratio) ** 2, self.tower_config.num_queries(side_px)
        if counted != made:
            raise UnsupportedConfigError(
                f"the processor counts {counted} tokens of a square of {side_px} pixels, by its patch_size {patch} and "
                f"downsample_ratio {ratio}; {made} queries look at it"
            )
        return made

    def default_template(self, found: FoundProcessor) -> str:
        """Return an image, a line end and what is asked for, message by message."""
        return TEMPLATE

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the marks of boxes, which a question asks for by one of them, and those of tables."""
        return marks_of(found, prompt, ends)


def marks_of(found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
    """Return the special tokens of a vocabulary that are part of questions and answers."""
    marks = [mark for mark in MARKS if mark in found.vocabulary.ids]
    return (*marks, *document_markup(found.vocabulary, prompt, ends))
