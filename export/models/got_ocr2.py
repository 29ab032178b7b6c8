"""GOT-OCR 2 (arXiv 2409.01704): SAM's tower, two halving convolutions, and a Qwen2; documents and their formats."""

from __future__ import annotations

from typing import ClassVar

from bundle.image import NearestGrid
from bundle.layouts.llava import LlavaPrompt
from export.config import Raw, sub_config
from export.connectors.halving_projector import HalvingProjector, halved
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.got_ocr2 import GotTower, GotTowerConfig
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {"tie_word_embeddings": True}
_IMAGE = "<imgpad>"
# The processor writes prompts itself, and no template comes with the checkpoint. Pages are written one behind another.
_CUT = "{% set cut = ' upon the patch reference' %}"
_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You should follow the instructions carefully and explain your answers in detail.<|im_end|>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% set images = message.content | selectattr('type', 'equalto', 'image') | list | length %}"
    "{% set texts = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | list %}"
    "{% if images %}<img>{{ '<imgpad>' * images }}</img>\n{% endif %}"
    "{% if texts %}{{ texts | join }}"
    "{% else %}{{ ' OCR' }}{{ ' across multi pages' if images > 1 }}{{ cut }}{{ ': ' }}{% endif %}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class GotOcr2(VisionLanguage):
    """`model_type` got_ocr2."""

    text_prefix = "model.language_model"
    default_text = "qwen2"
    image_processor = "GotOcr2ImageProcessor"
    # the checkpoint's own files end generation at another token, and its users at this one
    end_tokens: ClassVar[tuple[str, ...]] = ("<|im_end|>",)
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(language_model|vision_tower|multi_modal_projector)\.", r"model.\1."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._tower = GotTowerConfig.read(sub_config(config, "vision_config"))

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._tower.vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """A sixteenth of the patches."""
        return halved(halved(self._tower.vision.grid)) ** 2

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and convolutions."""
        tower = GotTower(self._tower, dialect, "model.vision_tower")
        width, name = self.decoder.config.hidden_size, "model.multi_modal_projector"
        return Chain(tower, HalvingProjector(tower.grid, self._tower.num_channels, width, name=name))

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token repeated, for all tiles of an image; the template writes what stands around them.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        for token in ("<img>", "</img>"):
            found.vocabulary.id_of(token, "the token around images")
        return LlavaPrompt(
            image_token=_IMAGE,
            image_token_id=found.image_token_id(self.config, _IMAGE),
            tokens_per_tile=self.tokens_per_tile,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return the prompts that the processor writes; a message of images alone asks for their plain text.

        A text is taken as the query: " OCR with format: ", "[red]  OCR: " for what is written in red, or
        "[100, 40, 620, 90] OCR: " for a box in thousandths of width and height.
        """
        geometry = found.spec.geometry
        return _CUT + _TEMPLATE if isinstance(geometry, NearestGrid) and geometry.most_tiles > 1 else _TEMPLATE
