"""A tower and a decoder that looks at what it made: TrOCR (arXiv 2109.10282) and Donut (arXiv 2111.15664)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.grounding import FieldGrounding
from bundle.image import ImageSpec
from bundle.layouts.encoded import EncodedPrompt
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.decoders.bart import MEMORY_ROWS
from export.family import Family, pixels
from export.found_processor import FoundProcessor
from export.nn.cross_attention import MemoryProjection, MemoryProjections
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.donut_swin import DonutSwin, SwinConfig
from export.towers.vit import VISION_DEFAULTS, VitTower
from export.vision_language import VisionLanguage

_DONUT, _VITS = "donut-swin", ("vit", "deit")
_DECODERS = ("trocr", "mbart")
_TABLE = "decoder.model.decoder.embed_tokens.weight"
_HEAD = "lm_head.weight"
_MARKUP = re.compile(r"</?s_[^<>]*>|<[^<>]+/>")
"""Of a document's fields, and of values that are tokens (transformers, `DonutProcessor.token2json`)."""
_QUESTION = ("<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>")
# {image} stands for the placeholder, {start} for the token that begins every answer
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('the model answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% set parts = messages[0].content %}{% if parts is not string %}{% for part in parts %}"
    "{% if part.type == 'image' %}{image}{% endif %}{% endfor %}{% endif %}"
    "{% set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') | map(attribute='text') "
    "| join %}{body}"
)
_BEGUN = "{start}{{ text }}"
_TASK = "{% if text %}{{ text }}{% else %}{start}{% endif %}"
_WRITTEN = "<s_docvqa><s_question>{{ text }}</s_question><s_answer>"
_ASKED = f"{{% if not text %}}{{start}}{{% elif '<s_' in text %}}{{{{ text }}}}{{% else %}}{_WRITTEN}{{% endif %}}"


class _Vision(Module):
    """Pixels to the keys and values of every layer of the decoder, [I, P, 2 * layers * D]."""

    def __init__(self, tower: Module, projection: Module | None, memory: MemoryProjections) -> None:
        super().__init__()
        self.tower, self.projection, self.memory = tower, projection, memory

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        seen = self.tower(op, pixel_values)
        return self.memory(op, seen if self.projection is None else self.projection(op, seen))


class VisionEncoderDecoder(VisionLanguage):
    """`model_type` vision-encoder-decoder, with the parts of TrOCR or of Donut.

    A text is how the answer begins, as transformers' `decoder_input_ids`: a task of Donut's with what it wants.
    """

    text_prefix = "decoder.model.decoder"
    wants_image: ClassVar[bool] = EncodedPrompt.wants_image
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^decoder\.(?:output_projection|lm_head)\.", "lm_head."),)
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        # most were never trained, and the decoder looks at patches
        r"encoder\.pooler\.dense\..*",
        r".*\.relative_position_index",
        # made anew of the places' numbers
        r".*\.embed_positions\._float_tensor",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._encoder, self._words = sub_config(config, "encoder"), sub_config(config, "decoder")
        kind, decoder = self._encoder.get("model_type"), self._words.get("model_type")
        if kind not in (_DONUT, *_VITS) or decoder not in _DECODERS:
            raise UnsupportedConfigError(
                f"encoder.model_type {kind!r} with decoder.model_type {decoder!r}: built are "
                f"{', '.join((_DONUT, *_VITS))} before {' or '.join(_DECODERS)}"
            )
        self._is_donut = kind == _DONUT
        self._swin = SwinConfig.read(self._encoder) if self._is_donut else None
        self._vit = None if self._is_donut else VisionConfig.read(self._encoder, VISION_DEFAULTS)

    @property
    def image_processor(self) -> str:  # type: ignore[override]
        """Which class makes images where the files name none."""
        return "DonutImageProcessor" if self._is_donut else "ViTImageProcessor"

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how many rows the tower makes."""
        return {**self._words, MEMORY_ROWS: self.rows_per_tile}

    @property
    def image_size_px(self) -> int | None:
        """Side of an image; None where it is no square."""
        height, width = self._image_px
        return height if height == width else None

    @property
    def _image_px(self) -> tuple[int, int]:
        if self._swin is not None:
            return self._swin.image_px
        side = self._square.image_size_px
        return side, side

    @property
    def _square(self) -> VisionConfig:
        if self._vit is None:
            raise UnsupportedConfigError("encoder: no ViT")
        return self._vit

    @property
    def tokens_per_tile(self) -> None:
        """None: features take no place in a prompt."""
        return

    @property
    def rows_per_tile(self) -> int:
        """What the tower makes of an image: its last patches, and ViT's first tokens."""
        if self._swin is not None:
            return self._swin.num_rows
        return self._square.grid**2 + 1 + self._is_distilled

    @property
    def feature_size(self) -> int:
        """Keys and values of all layers of the decoder."""
        config = self.decoder.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_size

    @property
    def _is_distilled(self) -> bool:
        return str(self._encoder["model_type"]) == "deit"

    def check_images(self, spec: ImageSpec) -> None:
        """Check that the processor makes images of the tower's size.

        Raises:
            UnsupportedConfigError: It does not.
        """
        if tuple(spec.tile_size_px) != self._image_px or not spec.geometry.has_one_size:
            raise UnsupportedConfigError(
                f"the processor makes images of {spec.tile_size_px} pixels, the vision tower takes {self._image_px}, "
                "height first; give size and image_size the same"
            )

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the decoder ties them."""
        return {_HEAD: _TABLE, _TABLE: _HEAD} if self._words.get("tie_word_embeddings", True) else {}

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, a projection where widths differ, and the keys and values of the decoder's layers."""
        tower, width = self._tower(dialect)
        config, across, rows = self.decoder.config, self._words.get("cross_attention_hidden_size"), self.rows_per_tile
        if across not in (None, width) or (across not in (None, config.hidden_size) and self._is_mbart):
            raise UnsupportedConfigError(
                f"decoder.cross_attention_hidden_size {across}: the tower makes {width} numbers a patch, and mBART "
                f"looks at as many as it has itself, {config.hidden_size}"
            )
        projection, seen = None, width
        if across is None and width != config.hidden_size:
            projection, seen = Linear(width, config.hidden_size, rows=rows, name="enc_to_dec_proj"), config.hidden_size
        name = f"{self.text_prefix}.layers.{{}}.encoder_attn".format
        memory = MemoryProjections(
            config.num_layers,
            lambda number: MemoryProjection(config, rows=rows, name=name(number), bias=True, in_size=seen),
        )
        return _Vision(tower, projection, memory)

    @property
    def _is_mbart(self) -> bool:
        return str(self._words["model_type"]) == "mbart"

    def _tower(self, dialect: Dialect) -> tuple[Module, int]:
        """Return the tower, and the width of what it makes."""
        if self._swin is not None:
            return DonutSwin(self._swin, dialect, "encoder"), self._swin.out_size
        config, has_bias = self._square, bool(self._encoder.get("qkv_bias", True))
        tower = VitTower(config, dialect, "encoder", qkv_bias=has_bias, is_distilled=self._is_distilled)
        return tower, config.tower.hidden_size

    def _pixels(self) -> TensorSpec:
        height, width = self._image_px
        given = pixels(height)
        return given.model_copy(update={"shape": (*given.shape[:2], height, width)})

    def image_prompt(self, found: FoundProcessor) -> EncodedPrompt:
        """Return no token for an image; the one that pads, which stands in no prompt, holds its place in a template.

        Raises:
            UnsupportedConfigError: The tokenizer names none.
        """
        token = found.vocabulary.template_tokens.get("pad_token")
        if token is None:
            raise UnsupportedConfigError("tokenizer_config.json names no pad_token, which holds an image's place")
        return EncodedPrompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "pad_token"),
            tokens_per_tile=self.rows_per_tile,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return how answers begin: TrOCR's first token and a text behind it; Donut's task, or the one it was made for.

        Donut's question of documents is written as one where the vocabulary has its marks.

        Raises:
            UnsupportedConfigError: The files name no token that begins answers, or one that is not in the vocabulary.
        """
        body = _BEGUN
        if self._is_donut:
            body = _ASKED if self._asks(found) else _TASK
        pad = found.vocabulary.template_tokens.get("pad_token", "")
        return _filled(_TEMPLATE.replace("{body}", body), {"{image}": pad, "{start}": self._start(found)})

    def _start(self, found: FoundProcessor) -> str:
        stated = ("decoder_start_token_id", "bos_token_id")
        sources = [(source, key) for key in stated for source in (found.generation, self.config, self._words)]
        number = next((source[key] for source, key in sources if source.get(key) is not None), None)
        text = next((text for text, token_id in found.vocabulary.ids.items() if token_id == number), None)
        if text is None:
            raise UnsupportedConfigError(
                f"decoder_start_token_id {number!r} of generation_config.json or config.json is not in the vocabulary; "
                "every answer begins with it"
            )
        return text

    def grounding(self, found: FoundProcessor) -> FieldGrounding | None:
        """Return that answers hold fields, where the vocabulary has marks of them."""
        marks = [text for text in found.vocabulary.ids if _MARKUP.fullmatch(text)]
        if not self._is_donut or not any(mark.startswith("<s_") for mark in marks):
            return None
        asked = _WRITTEN.replace("{{ text }}", "{question}") if self._asks(found) else ""
        return FieldGrounding(values=tuple(sorted(mark for mark in marks if mark.endswith("/>"))), question=asked)

    def _asks(self, found: FoundProcessor) -> bool:
        return all(mark in found.vocabulary.ids for mark in _QUESTION)

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the marks of fields, and values that are tokens."""
        return [text for text in found.vocabulary.ids if _MARKUP.fullmatch(text) and not prompt.writes(text)]


def _filled(template: str, texts: dict[str, str]) -> str:
    for slot, text in texts.items():
        template = template.replace(slot, text)
    return template
