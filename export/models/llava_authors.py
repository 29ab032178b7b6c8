"""LLaVA, Bunny, TinyLLaVA and FastVLM as their authors publish them: other configs, other keys, and no template.

A file in `export/authors/` for each says what its config means; from there on a checkpoint is `llava`, `llava_next` or
`fast_vlm`.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import ClassVar

from bundle.image import ImageSpec
from export.authors.fastvlm import RENAMES as FASTVITHD
from export.authors.fastvlm import UNUSED
from export.authors.translation import Translation
from export.config import Raw
from export.decoders.decoder import Decoder
from export.found_processor import FoundProcessor
from export.image_processor import read_image_spec
from export.marked_images import MarkedImages
from export.models.fast_vlm import FastVLM
from export.models.llava import PROJECTOR, Llava
from export.models.llava_next import LlavaNext
from export.models.llava_onevision import LlavaOnevision
from export.vision_language import VisionLanguage

LAYOUTS: Mapping[str, str] = {
    "llava_llama": "llava",
    "llava_mistral": "llava",
    "llava_qwen": "onevision",
    "llava_qwen2": "fastvlm",
    "bunny-phi": "bunny",
    "bunny-qwen2": "bunny",
    "bunny-llama": "bunny",
    "tiny_llava": "tinyllava_bench",
    "tiny_llava_phi": "tinyllava_bench",
    "tinyllava": "tinyllava",
}
"""`model_type` to the file in `export/authors/` that opens it."""
_CLASSES: Mapping[str, str] = {
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaQwenForCausalLM": "llava_qwen",
}
"""What older configs, whose `model_type` is llava, are by their class."""
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.(embed_tokens|layers|norm|final_layernorm)\.", r"model.language_model.\1."),
    (r"^(?:model\.mm_projector|connector\._connector)\.0\.", f"{PROJECTOR}.linear_1."),
    (r"^(?:model\.mm_projector|connector\._connector)\.2\.", f"{PROJECTOR}.linear_2."),
    (r"^(?:model\.mm_projector|connector\._connector)\.(weight|bias)$", rf"{PROJECTOR}.\1"),
    (r"^vision_tower\._vision_tower\.", "model.vision_tower."),
    (r"^model\.image_newline$", "image_newline"),
)
_TOWER = (r"^model\.vision_tower\.vision_tower\.", "model.vision_tower.")


def open_authors(config: Raw) -> VisionLanguage:
    """Return the family that a checkpoint of another code base is.

    Raises:
        UnsupportedConfigError: A setting that is not built.
    """
    named = [name for name in config.get("architectures") or () if name in _CLASSES]
    layout = importlib.import_module(f"export.authors.{LAYOUTS[_CLASSES[named[0]] if named else config['model_type']]}")
    translation: Translation = layout.open_layout(config)
    kind = translation.config["model_type"]
    if kind == "fast_vlm":
        return FastVLMAuthors(translation)
    if kind == "llava_onevision":
        return LlavaOnevisionAuthors(translation)
    return LlavaNextAuthors(translation) if translation.has_tiles else LlavaAuthors(translation)


class _Authors(MarkedImages):
    """What such checkpoints share: no token for an image, no template, and images as the tower's repository says."""

    def __init__(self, translation: Translation) -> None:
        super().__init__(translation.config)
        self._translation = translation

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder, with biases of its scores where this code base has them."""
        decoder = super().decoder
        decoder.has_head_bias = decoder.has_head_bias or self._translation.has_head_bias
        return decoder

    def own_image_spec(self) -> ImageSpec:
        """Return the preprocessing of the tower's repository, squared by padding or cut into tiles by the config."""
        return read_image_spec(self._translation.images, "the tower's image processor")

    def own_template(self) -> str:
        """Return the authors' conversation; a template among the tokenizer's files is of the decoder alone."""
        return self._translation.conversation.template()

    def answer_ends(self, ids: Collection[str]) -> Collection[str]:
        """Return what the conversation ends answers with."""
        return [self._translation.conversation.end]


class LlavaAuthors(_Authors, Llava):
    """A tower, a connector and a decoder; images of one size."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*_RENAMES, _TOWER, *Llava.renames)


class LlavaNextAuthors(_Authors, LlavaNext):
    """The same over tiles of the best of several grids."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*_RENAMES, _TOWER, *LlavaNext.renames)


class LlavaOnevisionAuthors(_Authors, LlavaOnevision):
    """The same, pictures of at most so many tiles' patches, and several images a padded tile each."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*_RENAMES, _TOWER, *LlavaOnevision.renames)

    def most_tiles(self, found: FoundProcessor) -> int:
        """Return of how many tiles' patches a picture has at most: there is no processor to say another number."""
        return int(str(self.config["vision_aspect_ratio"]).rpartition("_")[2])


class FastVLMAuthors(_Authors, FastVLM):
    """FastViTHD before a Qwen2."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*_RENAMES, *FASTVITHD)
    unused: ClassVar[tuple[str, ...]] = (*FastVLM.unused, *UNUSED)
