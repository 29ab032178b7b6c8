"""VLoRA (arXiv 2405.20339): a LLaVA whose image changes the decoder's weights, and takes no token.

The layout is that of LLaVA in transformers, with the authors' generator (`mm_projector`) in the connector's place and
their keys (`vlora_*`, `weights_sep`, `skip_layers`) in the config.
"""

from __future__ import annotations

from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.vlora import VLoRAPrompt
from export.config import Raw
from export.connectors.perceptual_weights import PerceptualWeights
from export.decoders.llama_vlora import GENERATOR, MOST_IMAGES, LlamaVLoRA
from export.found_processor import FoundProcessor
from export.models.llava import Llava
from export.nn.dialect import Dialect
from export.nn.module import Module

_KEYS = ("vlora_type", "vlora_rank", "vlora_alpha", "vlora_llm_dim", "vlora_llm_depth", "weights_sep", "skip_layers")


class LlavaVLoRA(Llava):
    """`model_type` llava_vlora."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(model\.)?mm_projector\.", "model.multi_modal_projector."),
        *Llava.renames,
    )
    tells_tower = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        missing = [key for key in ("vlora_dim", "vlora_depth", "vlora_type", "vlora_rank") if key not in config]
        if missing:
            raise UnsupportedConfigError(f"config.json lacks {', '.join(missing)}, which VLoRA's generator is built by")
        if config.get("vlora_pos_num", self._patches) != self._patches:
            raise UnsupportedConfigError(
                f"vlora_pos_num {config['vlora_pos_num']}: the tower gives {self._patches} features of an image"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and what an image changes of it."""
        own = super().text_config
        if (kind := own.get("model_type", "llama")) != "llama":
            raise UnsupportedConfigError(f"text_config.model_type {kind!r}: VLoRA is built on llama alone")
        return {**own, "model_type": "llama_vlora", **{key: self.config[key] for key in _KEYS if key in self.config}}

    @property
    def _patches(self) -> int:
        """Features of an image, which the generator looks at."""
        return int(super().tokens_per_tile)

    @property
    def _text(self) -> LlamaVLoRA:
        decoder = self.decoder
        if not isinstance(decoder, LlamaVLoRA):
            raise UnsupportedConfigError("VLoRA is built on llama alone")
        return decoder

    @property
    def tokens_per_tile(self) -> None:  # type: ignore[override]
        """None: features take no place in a prompt."""
        return

    @property
    def rows_per_tile(self) -> int:
        """The rank of what an image changes."""
        return self._text.changes.rank

    @property
    def feature_size(self) -> int:
        """First matrices of all changes."""
        text = self._text
        return len(text.changes.kinds) * (text.config.num_layers // text.changes.every) * text.config.hidden_size

    def image_prompt(self, found: FoundProcessor) -> VLoRAPrompt:
        """Return no token for an image.

        Raises:
            UnsupportedConfigError: The placeholder is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<image>")
        return VLoRAPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=1,
            rank=self.rows_per_tile,
            most_images=MOST_IMAGES,
        )

    def connector(self, dialect: Dialect) -> Module:
        """Return the generator of perceptual weights."""
        text = self._text
        return PerceptualWeights(
            dialect,
            visual_size=self._vision.tower.hidden_size * len(self._layers),
            num_patches=self._patches,
            size=int(self.config["vlora_dim"]),
            depth=int(self.config["vlora_depth"]),
            kinds=len(text.changes.kinds),
            num_layers=text.config.num_layers // text.changes.every,
            shape=(text.config.hidden_size, text.changes.rank),
            name=GENERATOR,
        )
