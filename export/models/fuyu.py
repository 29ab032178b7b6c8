"""Fuyu (Adept, "Fuyu-8B: a multimodal architecture for AI agents", 2023): patches straight into a Persimmon decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import tokenizers

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedPatches
from bundle.layouts.fuyu import FuyuPrompt
from bundle.text import Tokenizer
from export.config import Raw, require
from export.decoders.persimmon import DEFAULTS
from export.found_processor import FoundProcessor
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, by_shared_heads
from export.quantized.table import load_method
from export.towers.bare_patches import LinearPatches
from export.vision_language import VisionLanguage
from export.vocabulary import Vocabulary

_IMAGE, _LINE_END, _TEXT, _ANSWER, _END = "|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>", "|ENDOFTEXT|"
_FLAT = (*DEFAULTS, "qk_layernorm", "rope_scaling", "rope_theta", "eos_token_id", "use_cache", "initializer_range")
"""What of a config without `text_config` is the decoder's, as the hub's has it (transformers, `FuyuConfig`)."""
# {begin} stands for what the tokenizer puts before a text alone; the image's tokens bring the one before its text
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('Fuyu answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% set given = messages[0].content %}"
    "{% if given is string %}{{ '{begin}' + given }}{% else %}"
    "{% set said = given | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% set images = given | selectattr('type', 'equalto', 'image') | list | length %}"
    "{% if images and not said %}{{ raise_exception('Fuyu answers a text about an image; say what is asked') }}"
    "{% endif %}"
    "{{ ('{image}' * images) + said + '{answer}' if images else '{begin}' + said }}{% endif %}"
)


class Fuyu(VisionLanguage):
    """`model_type` fuyu."""

    text_prefix = "model.language_model"
    image_processor = "FuyuImageProcessor"
    cuts_at_images = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.(?:model\.)?", "model.language_model."),
        (r"^vision_embed_tokens\.", "model.vision_embed_tokens."),
        (r"\.mlp\.dense_h_to_4h\.", ".mlp.fc1."),
        (r"\.mlp\.dense_4h_to_h\.", ".mlp.fc2."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("num_channels", 3)])
        self._patch_px = int(config.get("patch_size", 30))

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, which in older ones is the config itself.

        Raises:
            UnsupportedConfigError: Another part of heads would turn than transformers turns, which does not read it.
        """
        nested = self.config.get("text_config")
        if nested is not None:
            return {"model_type": "persimmon", **nested}
        require(self.config, [("partial_rotary_factor", 0.5)])
        return {"model_type": "persimmon", **{key: self.config[key] for key in _FLAT if key in self.config}}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as patches."""
        return

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry = spec.geometry
        if not isinstance(geometry, PaddedPatches) or geometry.patch_px != self._patch_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}, the model takes patches of {self._patch_px} pixels: "
                "patch_size of both must be the same"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return a matrix over patches, and nothing else."""
        return LinearPatches(self.decoder.config.hidden_size, self._patch_px, "model.vision_embed_tokens")

    def stored_weights(self) -> QuantizationMethod:
        """Return how queries, keys and values stand in one matrix, head by head."""
        if self.config.get("quantization_config") is not None or self.text_config["model_type"] != "persimmon":
            return load_method(self.config)
        return PackedProjections({"self_attn.query_key_value": by_shared_heads(self.decoder.config)})

    def own_tokens(self, ids: Mapping[str, int]) -> Mapping[str, int]:
        """Return the tokens around images and texts, which the tokenizer has among its pieces: to be found in any text.

        The processor cuts prompts at one and takes the blank away that its tokenizer puts before another; callers must
        write none of them.
        """
        return {token: ids[token] for token in (_IMAGE, _LINE_END, _TEXT, _ANSWER, _END) if token in ids}

    def image_prompt(self, found: FoundProcessor) -> FuyuPrompt:
        """Return rows of patches that all end, and the token before the text.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        for token, role in (
            (_LINE_END, "the token behind a row of patches"),
            (_TEXT, "the token before a text"),
            (_ANSWER, "the token behind a text about an image"),
        ):
            found.vocabulary.id_of(token, role)
        rows, cols = (side // self._patch_px for side in found.spec.tile_size_px)
        return FuyuPrompt(
            image_token=_IMAGE,
            image_token_id=found.image_token_id(self.config, _IMAGE),
            tokens_per_tile=rows * cols,
            step_px=self._patch_px,
            break_token=_LINE_END,
            end_token=_LINE_END,
            text_token=_TEXT,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return one message: the image before its text and the token that begins an answer, or a text that goes on.

        Raises:
            UnsupportedConfigError: The tokenizer puts more around a text than the token that begins it.
        """
        begin = _begin(found.vocabulary)
        template = _TEMPLATE.replace("{begin}", begin).replace("{image}", _IMAGE)
        return template.replace("{answer}", _ANSWER)


def _begin(vocabulary: Vocabulary) -> str:
    """Return the token that `tokenizer.json` begins a text with; "" where it puts none.

    Raises:
        UnsupportedConfigError: It puts others around a text.
    """
    around = Tokenizer(tokenizers.Tokenizer.from_str(vocabulary.text)).with_special_tokens([])
    bos = vocabulary.template_tokens.get("bos_token", "")
    if around and around != [vocabulary.ids.get(bos)]:
        raise UnsupportedConfigError(f"tokenizer.json puts the tokens {around} around a text; built is bos_token alone")
    return bos if around else ""
