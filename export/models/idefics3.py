"""Idefics3 and SmolVLM: a SigLIP tower, pixel shuffle, one matrix, and a Llama decoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.idefics3 import Idefics3Prompt
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.connectors.pixel_shuffle import PixelShuffle
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.tower_view import over_squares, tower_specs, tower_view
from export.nn.vit import tower_heads
from export.spoken_tokens import document_markup
from export.towers.idefics3 import VISION_DEFAULTS, AnySizeEmbeddings, Idefics3Tower, side_of
from export.vision_language import VisionLanguage

_TELLS_TIMES = "SmolVLMProcessor"
"""The processor that writes a video's length and the times of its frames into the prompt."""


_DOCUMENT = "<doctag>"
"""What a document begins with, in the markup of Docling (arXiv 2503.11576, section 3.1)."""


class _Vision(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect, factor: int, out_size: int, *, any_size: bool) -> None:
        super().__init__()
        width, name = config.tower.hidden_size, "model.connector"
        self.tower = Idefics3Tower(config, dialect, any_size=any_size)
        self.connector = PixelShuffle(config.grid, width, out_size, factor, name=name)
        self.config = config
        self.factor = factor

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> tuple[ir.Value, ...]:
        patches, looked = self.tower(op, pixel_values)
        heads = tower_heads(self.config.tower)
        received, keys = tower_view(op, looked, heads, has_class_token=False)
        embeddings = self.tower.embeddings
        side = side_of(op, pixel_values, embeddings) if isinstance(embeddings, AnySizeEmbeddings) else None
        grid = self.config.grid if side is None else side
        squares = over_squares(op, received, keys, grid, self.factor, heads.size)
        return self.connector(op, patches, side), *squares


class Idefics3(VisionLanguage):
    """`model_type` idefics3 and smolvlm."""

    text_prefix = "model.text_model"
    image_processor = "Idefics3ImageProcessor"
    can_take_smaller_images = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        self._factor = int(config.get("scale_factor", 2))
        if self._vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"scale_factor {self._factor} does not divide the {self._vision.grid} patches of a tile's side"
            )

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile, after the shuffle."""
        return int((self._vision.grid // self._factor) ** 2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        size = self.decoder.config.hidden_size
        return _Vision(self._vision, dialect, self._factor, size, any_size=self.takes_smaller_images)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what tells of the last layer's attention."""
        num_tokens = "P" if self.takes_smaller_images else self.tokens_per_tile
        return tower_specs(num_tokens, tower_heads(self._vision.tower).size)

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return DocTags, where the vocabulary has them: SmolDocling and Granite Docling answer in such markup."""
        return document_markup(found.vocabulary, prompt, ends) if _DOCUMENT in found.vocabulary.ids else ()

    def image_prompt(self, found: FoundProcessor) -> Idefics3Prompt:
        """Return tiles with markers between fake tokens.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        stated = found.settings.get("image_seq_len")
        if stated is not None and int(stated) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: image_seq_len {stated}, but tiles of {self._vision.image_size_px} pixels in "
                f"patches of {self._vision.patch_size_px} with scale_factor {self._factor} make {self.tokens_per_tile} "
                "tokens"
            )
        token = found.token("image_token", "<image>")
        fake_token = found.token("fake_image_token", "<fake_token_around_image>")
        global_token = found.token("global_image_token", "<global-img>")
        found.vocabulary.id_of(fake_token, "the token around images")
        found.vocabulary.id_of(global_token, "the token before the whole image")
        return Idefics3Prompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            frames="smolvlm" if found.is_of(_TELLS_TIMES) else "plain",
            fake_token=fake_token,
            global_token=global_token,
        )
