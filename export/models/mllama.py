"""Llama 3.2 Vision (arXiv 2407.21783, section 7): images in a memory that some layers of the decoder attend to.

The pattern of Flamingo (arXiv 2204.14198) and of EVLM: the decoder's text holds one token for an image.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import Canvas, ImageSpec
from bundle.layouts.mllama import MllamaPrompt
from export.config import DecoderConfig, Raw, require, sub_config
from export.decoders.mllama_text import MEMORY_ROWS, MllamaText
from export.found_processor import FoundProcessor
from export.nn.cross_attention import MemoryProjection
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.towers.mllama import MllamaTower, MllamaTowerConfig
from export.vision_language import VisionLanguage

_NEVER_SAID = 8
"""Rows of the table of tokens behind those that the head scores; the image token is the first of them."""
_MOST_IMAGES = 2
"""For which the memory has room: each takes keys and values of all its tiles in every layer that attends to it, 400 MB
of Llama 3.2 Vision 11B."""


class _Vision(Module):
    """Pixels to the keys and values of every layer that attends to images, [I, R, 2 * layers * K * C]."""

    def __init__(self, config: MllamaTowerConfig, decoder: MllamaText, dialect: Dialect) -> None:
        super().__init__()
        rows, width = config.most_tiles * config.rows_per_tile, decoder.config.hidden_size
        self.tower = MllamaTower(config, dialect, "model.vision_model")
        self.projector = Linear(config.out_size, width, rows=rows, name="model.multi_modal_projector")
        self.numbers = decoder.cross_layers
        for number in self.numbers:  # each under its own name: a list would number them anew
            setattr(self, f"layer_{number}", _layer(decoder.config, dialect, number, rows))

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        features = self.projector(op, self.tower(op, pixel_values))
        layers = [getattr(self, f"layer_{number}") for number in self.numbers]
        parts = [part for layer in layers for part in layer(op, features)]
        return op.Concat(*parts, axis=2)


def _layer(config: DecoderConfig, dialect: Dialect, number: int, rows: int) -> MemoryProjection:
    name = f"{Mllama.text_prefix}.layers.{number}.cross_attn"
    norm = RMSNorm(config.head_size, config.rms_norm_eps, dialect)
    return MemoryProjection(config, rows=rows, name=name, norm=norm)


class Mllama(VisionLanguage):
    """`model_type` mllama."""

    text_prefix = "model.language_model"
    image_processor = "MllamaImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_model|multi_modal_projector)\.", r"model.\1."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(super().text_config, [("tie_word_embeddings", False)])
        self._tower = MllamaTowerConfig.read(sub_config(config, "vision_config"))

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how large its memory is."""
        return {
            "model_type": "mllama_text_model",
            **super().text_config,
            MEMORY_ROWS: _MOST_IMAGES * self.rows_per_tile,
        }

    @property
    def vocab_size(self) -> int:
        """Rows of the table of tokens."""
        return super().vocab_size + _NEVER_SAID

    @property
    def image_size_px(self) -> None:
        """None: a grid of tiles."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: features take no place in a prompt."""
        return

    @property
    def rows_per_tile(self) -> int:
        """Of all tiles that a grid may have."""
        return self._tower.most_tiles * self._tower.rows_per_tile

    @property
    def feature_size(self) -> int:
        """Keys and values of all layers that attend to images."""
        config = self.decoder.config
        return 2 * len(self._cross_layers) * config.num_kv_heads * config.head_size

    @property
    def _cross_layers(self) -> tuple[int, ...]:
        return self._text.cross_layers

    @property
    def _text(self) -> MllamaText:
        decoder = self.decoder
        if not isinstance(decoder, MllamaText):
            raise UnsupportedConfigError(
                f"text_config.model_type {self.text_config['model_type']!r}: built is mllama_text_model alone"
            )
        return decoder

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in grids of the tower's tiles.

        Raises:
            UnsupportedConfigError: They do not.
        """
        side, most = self._tower.vision.image_size_px, self._tower.most_tiles
        if spec.geometry != Canvas(tile_px=side, most_tiles=most):
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the vision tower takes up to {most} tiles of {side} "
                "pixels: size and max_image_tiles of the processor must be image_size and max_num_tiles of "
                "vision_config"
            )

    def table(self) -> Module:
        """Return the table of tokens, with those that are never said."""
        name, size = f"{self.text_prefix}.embed_tokens", self.decoder.config.hidden_size
        return Embedding(self.vocab_size, size, name=name)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, projection, and the keys and values of the decoder's layers."""
        return _Vision(self._tower, self._text, dialect)

    def image_prompt(self, found: FoundProcessor) -> MllamaPrompt:
        """Return one token for an image.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<|image|>")
        return MllamaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=1,
            tile_px=self._tower.vision.image_size_px,
            features_per_tile=self._tower.rows_per_tile,
            most_tiles=self._tower.most_tiles,
            most_images=_MOST_IMAGES,
        )
