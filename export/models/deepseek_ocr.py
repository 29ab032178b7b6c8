"""DeepSeek-OCR (arXiv 2510.18234): SAM's tower and CLIP's behind it, a matrix, lines that end, a decoder of experts."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedWithTiles
from bundle.layouts.deepseek_ocr import DeepSeekOcrPrompt
from bundle.layouts.table import KnownImagePrompt
from export.config import Raw, require, sub_config
from export.connectors.line_end import LineEnd
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.deepseek_ocr2 import SAM_RENAMES, TEXT_RENAMES, marks_of
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.towers.deepseek_ocr import SamClipConfig, SamClipTower
from export.vision_language import VisionLanguage

_IMAGE = "<image>"
_TOWER = "model.vision_tower"


class DeepSeekOcr(VisionLanguage):
    """The parts of the model, in transformers' keys of UnlimitedOcr, which has them too."""

    text_prefix = "model.language_model"
    image_processor: ClassVar[str] = "UnlimitedOcrImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *SAM_RENAMES,
        *TEXT_RENAMES,
        (r"^model\.vision_model\.", "model.vision_tower.vision_encoder."),
        (r"^(model\.vision_tower\.vision_encoder\.)transformer\.", r"\1encoder."),
    )
    # CLIP's own patches, in whose place SAM's are
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.vision_tower\.vision_encoder\.embeddings\.patch_embedding\.weight",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(sub_config(config, "text_config"), [("tie_word_embeddings", False)])
        vision = sub_config(config, "vision_config")
        self._tower = SamClipConfig.read(vision.get("sam_config") or {}, vision.get("encoder_config") or {})

    @property
    def image_size_px(self) -> None:
        """None: tiles are smaller than all of an image."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as its side has patches behind the convolutions."""
        return

    def stored_weights(self) -> QuantizationMethod:
        """Return how CLIP's queries, keys and values are stored: in one matrix."""
        require(self.config, [("quantization_config", None)])
        width = self._tower.clip.tower.hidden_size
        return PackedProjections({"self_attn.qkv_proj": one_after_another(q_proj=width, k_proj=width, v_proj=width)})

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images are squares of whole patches.

        Raises:
            UnsupportedConfigError: They are not.
        """
        geometry, patch_px = spec.geometry, self._tower.sam.sam.vision.patch_size_px
        if not isinstance(geometry, PaddedWithTiles) or geometry.whole_px % patch_px or geometry.tile_px % patch_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}; the tower takes squares of whole patches of {patch_px} px"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and matrix, and the rows that end a line and an image."""
        config, size = self._tower, self.decoder.config.hidden_size
        tower = SamClipTower(config, dialect, _TOWER)
        rows = config.num_patches(config.sam.sam.vision.image_size_px)
        projector = Linear(config.out_size, size, rows=rows, name="model.multi_modal_projector")
        with_lines = LineEnd(Chain(tower, projector, ""), size, name="model.image_newline")
        return LineEnd(with_lines, size, name="model.view_separator")

    def image_prompt(self, found: FoundProcessor) -> DeepSeekOcrPrompt:
        """Return the tokens of tiles and of all of an image, line by line.

        Raises:
            UnsupportedConfigError: The image token is not in the vocabulary.
        """
        geometry = found.spec.geometry
        if not isinstance(geometry, PaddedWithTiles):
            raise UnsupportedConfigError(f"the processor makes images by {geometry!r}")
        token = found.token("image_token", _IMAGE)
        return DeepSeekOcrPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self._tower.num_patches(geometry.whole_px),
            tokens_of_tile=self._tower.num_patches(geometry.tile_px),
            ends_lines=True,
        )

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the marks of boxes, which a question asks for by one of them, and those of tables."""
        return marks_of(found, prompt, ends)
