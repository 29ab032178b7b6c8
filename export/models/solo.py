"""SOLO (arXiv 2407.06438): patches straight into a Mistral decoder, added to the token that stands in their places."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, LongestEdge
from bundle.layouts.solo import SoloPrompt
from export.config import Raw, require
from export.found_processor import FoundProcessor
from export.image_processors.image_processor import IMAGENET_MEAN, IMAGENET_STD
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.nn.patches import VideoPatches
from export.vision_language import VisionLanguage

_AROUND, _PATCH, _ROW = "<vision>", "<vpatch>", "<vrow_sep>"
"""Of the authors' `src/data/instruction_tuning.py`, which ends an image by the token that opens it; `</vision>` is in
the vocabulary, and in no prompt."""
_PLACE_ID = 32_001
"""Of `<vpatch>` by the authors' `scripts/model/create_solo.py`: the second token behind Mistral's 32,000."""
_PATCHES_A_SIDE = 32
"""Of the longest side (`image_utils.py`: 1024 pixels in patches of 32)."""
_IMAGES = "selectattr('type', 'equalto', 'image') | list | length"
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.content is string %}{% set images, said = 0, message.content %}{% else %}"
    "{% set images = message.content | " + _IMAGES + " %}"
    "{% set said = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}{% endif %}"
    "{% if message.role == 'user' %}{{ '{patch}' * images }}{{ bos_token if loop.first }}{{ '[INST] ' + said | trim }}"
    "{{ ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ ' ' + said + eos_token }}"
    "{% else %}{{ raise_exception('SOLO knows messages of user and assistant alone') }}{% endif %}{% endfor %}"
)


class _Patches(Module):
    """[I, N, D]: a matrix over patches, channels first in each, and the embedding of the token in their places."""

    def __init__(self, size: int, side: int, place_id: int) -> None:
        super().__init__("model")
        self.embed_vision_patch = VideoPatches(size, side, 1, is_matrix=True)
        own = (place_id, place_id + 1)
        self.place = Weight(1, size, name="embed_vision_patch.place", source="embed_tokens.weight", rows=own)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, _ = self.embed_vision_patch(op, pixel_values)
        return op.Add(patches, self.place)


class Solo(VisionLanguage):
    """`architectures` SoloForCausalLM, whose `model_type` is mistral."""

    text_prefix = "model"
    image_processor = "PixtralImageProcessor"
    reads_vocabulary = True
    cuts_at_images = True

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("text_config", None), ("vision_config", None)])
        self._patch_px = int(config.get("vision_patch_size", 32))

    @property
    def text_config(self) -> Raw:
        """The config itself, a Mistral's."""
        return {**self.config, "model_type": "mistral"}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as patches."""
        return

    def own_image_spec(self) -> ImageSpec:
        """Return the preprocessing of the authors' `image_utils.py`, for which a checkpoint has no file."""
        longest = _PATCHES_A_SIDE * self._patch_px
        return ImageSpec(
            geometry=LongestEdge(longest_px=longest, step_px=self._patch_px, scaling="in steps"),
            resample="bilinear",
            rescale_factor=1 / 255,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def is_of_decoder(self, name: str) -> bool:
        """Return whether a weight is the decoder's, beside which the patches' matrix stands."""
        return super().is_of_decoder(name) and not name.startswith("model.embed_vision_patch.")

    def vision(self, dialect: Dialect) -> Module:
        """Return patches and the embedding in their places.

        Raises:
            UnsupportedConfigError: The table has no such row.
        """
        place_id = self.stated_ids.get(_PATCH, _PLACE_ID)
        if place_id >= self.vocab_size:
            raise UnsupportedConfigError(
                f"config.json: vocab_size {self.vocab_size}: the table has no row of {_PATCH}, whose id is {place_id}"
            )
        return _Patches(self.decoder.config.hidden_size, self._patch_px, place_id)

    def own_tokens(self, ids: Mapping[str, int]) -> Mapping[str, int]:
        """Return the tokens of images, which the tokenizer has as pieces that no text becomes."""
        return {token: ids[token] for token in (_AROUND, _PATCH, _ROW) if token in ids}

    def image_prompt(self, found: FoundProcessor) -> SoloPrompt:
        """Return rows of patches between their tokens.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        for token, role in ((_AROUND, "the token around an image"), (_ROW, "the token between rows")):
            found.vocabulary.id_of(token, role)
        rows, cols = (side // self._patch_px for side in found.spec.tile_size_px)
        return SoloPrompt(
            image_token=_PATCH,
            image_token_id=found.vocabulary.id_of(_PATCH, "the token in the places of patches"),
            tokens_per_tile=rows * cols,
            step_px=self._patch_px,
            break_token=_ROW,
            end_token=_AROUND,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return conversations as the authors' code tunes on them: images before all words of a message."""
        return _TEMPLATE.replace("{patch}", _PATCH)
