"""PaliGemma and PaliGemma 2 (arXiv 2407.07726, 2412.03555): SigLIP, one matrix, and a Gemma whose prompt sees itself.

A prompt is images, then a task in words ("caption en", "detect cat"), and a line end; what the model says follows it.
There are no roles and no turns, and published checkpoints have no chat template: a chat of one message becomes that
prompt (`_TEMPLATE`), and any other is refused.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.paligemma import PaliGemmaPrompt
from bundle.layouts.prompt import LooksAhead
from export.config import Raw, VisionConfig, sub_config
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.siglip import VISION_DEFAULTS, NormedSiglipTower
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {"tie_word_embeddings": True, "projection_dim": 2048}
_TEXT_DEFAULTS: Raw = {"vocab_size": 257_152, "hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16_384}
"""Of a config without any text_config (transformers, `PaliGemmaConfig`)."""
_DEFAULT_HEADS: Raw = {"num_attention_heads": 8, "num_key_value_heads": 1}
_SEES_ALL = "use_bidirectional_attention"
_TEMPLATE = (
    "{%- if messages | length != 1 or messages[0].role != 'user' -%}"
    "{{ raise_exception('this model answers one message of the role user: images and a task in words, such as "
    '"caption en"; it knows no turns and no system message\') }}'
    "{%- endif -%}"
    "{%- for part in messages[0].content if part.type == 'image' -%}<image>{%- endfor -%}"
    "{{- bos_token -}}"
    "{%- for part in messages[0].content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}"
    "{{- '\\n' -}}"
)
"""As `PaliGemmaProcessor` puts a prompt together; texts between images follow one another behind the last."""


class _Projector(Module):
    def __init__(self, in_size: int, out_size: int, *, rows: int) -> None:
        super().__init__("model.multi_modal_projector")
        self.linear = Linear(in_size, out_size, rows=rows)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.linear(op, x)


class PaliGemma(VisionLanguage):
    """`model_type` paligemma."""

    text_prefix = "model.language_model"
    image_processor = "SiglipImageProcessor"
    caps_logits: ClassVar[bool] = True
    looks_ahead: ClassVar[LooksAhead] = PaliGemmaPrompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    )
    # the connector reads patches: what pools them for a dual encoder has no effect
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.head\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        width, stated = self.decoder.config.hidden_size, self.config["projection_dim"]
        if stated != width:
            raise UnsupportedConfigError(
                f"projection_dim {stated}, but the decoder is {width} wide: features would have no place in it"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, which is a Gemma where it says nothing.

        Raises:
            UnsupportedConfigError: Its prompts do not see themselves.
        """
        raw = self.config.get("text_config") or {**_TEXT_DEFAULTS, **_DEFAULT_HEADS}
        if raw.get(_SEES_ALL) not in (None, True):
            raise UnsupportedConfigError(
                f"text_config.{_SEES_ALL} {raw[_SEES_ALL]!r}: PaliGemma's prompts see all of themselves; built is true"
            )
        return {"model_type": "gemma", **{key: value for key, value in raw.items() if key != _SEES_ALL}}

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches."""
        return int(self._vision.grid**2)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        width, rows = self._vision.tower.hidden_size, self.tokens_per_tile
        projector = _Projector(width, self.decoder.config.hidden_size, rows=rows)
        return Chain(NormedSiglipTower(self._vision, dialect, "model.vision_tower"), projector)

    def default_template(self, found: FoundProcessor) -> str:
        """Return a prompt of one message, as the processor puts it together."""
        return _TEMPLATE

    def image_prompt(self, found: FoundProcessor) -> PaliGemmaPrompt:
        """Return the tokens of images, before all else.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        nested = found.settings.get("image_processor") or {}
        stated = nested.get("image_seq_length")
        if stated is not None and int(stated) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"image_seq_length {stated}, but images of {self.image_size_px} pixels in patches of "
                f"{self._vision.patch_size_px} make {self.tokens_per_tile} tokens"
            )
        token = found.token("image_token", "<image>")
        return PaliGemmaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )
