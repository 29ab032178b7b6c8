"""BLIP (arXiv 2201.12086): captions by a decoder over the image, answers by one over a question that saw the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.encoded import EncodedPrompt
from export.config import Raw, TowerConfig, VisionConfig, require, sub_config
from export.decoders.bart import MEMORY_ROWS
from export.decoders.blip_text_model import DEFAULTS
from export.found_processor import FoundProcessor
from export.nn.bert_decoder import bert_renames
from export.nn.bert_reader import BertReader
from export.nn.cross_attention import MemoryProjection, MemoryProjections
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.blip_2 import VISION_DEFAULTS, Blip2Tower
from export.vision_language import QuestionReading, VisionLanguage

_CAPTIONS, _ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
_DEC, _SEP = "[DEC]", "[SEP]"
_HEAD = "text_decoder.cls.predictions"
# {image} stands for the placeholder, {start} for the token that begins every answer
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('BLIP answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% set parts = messages[0].content %}{% if parts is not string %}{% for part in parts %}"
    "{% if part.type == 'image' %}{image}{% endif %}{% endfor %}{% endif %}{start}"
)
_BEGUN = (
    "{% if parts is string %}{{ parts }}{% else %}{% for part in parts %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}"
)


class _Vision(Module):
    """Pixels, and a question where one is read, to keys and values of the decoder's layers [I, R, 2 * layers * D]."""

    def __init__(self, tower: Blip2Tower, reader: BertReader | None, memory: MemoryProjections) -> None:
        super().__init__()
        self.tower, self.reader, self.memory = tower, reader, memory

    def forward(self, op: OpBuilder, pixel_values: ir.Value, question_ids: ir.Value | None = None) -> ir.Value:
        seen = self.tower(op, pixel_values)
        return self.memory(op, seen if self.reader is None else self.reader(op, question_ids, seen))


class Blip(VisionLanguage):
    """`model_type` blip, to caption (a text is how the caption begins) or to answer questions, by `architectures`."""

    text_prefix = "text_decoder"
    image_processor = "BlipImageProcessor"
    wants_image: ClassVar[bool] = EncodedPrompt.wants_image
    end_tokens: ClassVar[tuple[str, ...]] = (_SEP,)
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *bert_renames(r"text_decoder\.bert\.", "text_decoder"),
        (r"^text_decoder\.cls\.predictions\.transform\.", "text_decoder.transform."),
        (r"^text_decoder\.cls\.predictions\.decoder\.weight$", "lm_head.weight"),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        named = list(config.get("architectures") or [_CAPTIONS])
        if len(named) != 1 or named[0] not in (_CAPTIONS, _ANSWERS):
            raise UnsupportedConfigError(
                f"architectures {named!r}; built are {_CAPTIONS} and {_ANSWERS}, and nothing that matches or retrieves"
            )
        self._reads = named[0] == _ANSWERS
        defaults = {**VISION_DEFAULTS, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        defaults |= {"num_attention_heads": 12, "image_size": 384, "patch_size": 16, "layer_norm_eps": 1e-5}
        self._vision = VisionConfig.read(sub_config(config, "vision_config"), defaults)
        text, size = self._words, self._vision.tower.hidden_size
        require(text, [("tie_word_embeddings", True)])
        if text["encoder_hidden_size"] != size or (self._reads and text["hidden_size"] != size):
            raise UnsupportedConfigError(
                f"text_config.encoder_hidden_size {text['encoder_hidden_size']} beside an image's {size} numbers a row"
                f"{' and a question of ' + str(text['hidden_size']) if self._reads else ''}; they are looked at by one "
                "and the same width"
            )

    @property
    def _words(self) -> Raw:
        return {"model_type": "blip_text_model", **DEFAULTS, **sub_config(self.config, "text_config")}

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how large its memory is."""
        text = self._words
        return {**text, MEMORY_ROWS: int(text["max_position_embeddings"]) if self._reads else self._image_rows}

    @property
    def image_size_px(self) -> int:
        """Side of an image."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> None:
        """None: features take no place in a prompt."""
        return

    @property
    def rows_per_tile(self) -> int | None:
        """The patches and the class token; None where the rows are those of a question."""
        return None if self._reads else self._image_rows

    @property
    def _image_rows(self) -> int:
        return self._vision.grid**2 + 1

    @property
    def feature_size(self) -> int:
        """Keys and values of all layers of the decoder."""
        config = self.decoder.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_size

    @property
    def question(self) -> QuestionReading | None:
        """What an encoder reads that looks at the image, in words of the same vocabulary; None: captions are said."""
        if not self._reads:
            return None
        return QuestionReading(self.vocab_size, int(self._words["max_position_embeddings"]), "")

    def stand_ins(self) -> dict[str, str]:
        """Return the table for the output matrix, and the other name of its biases."""
        head, table = "lm_head.weight", f"{self.text_prefix}.embed_tokens.weight"
        return {head: table, table: head, "lm_head.bias": f"{_HEAD}.bias"}

    def skipped(self) -> tuple[str, ...]:
        """Return what no graph wants: biases are kept under two names, of which one is read."""
        return (*super().skipped(), r"text_decoder\.cls\.predictions\.(?:decoder\.)?bias")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, the reader of questions where there is one, and keys and values of the decoder's layers."""
        config, text, rows = self.decoder.config, self._words, self._image_rows
        tower = Blip2Tower(self._vision, dialect, "vision_model")
        sizes = TowerConfig.read(text, DEFAULTS)
        reader = None
        if self._reads:
            positions = int(text["max_position_embeddings"])
            reader = BertReader(
                sizes, config.vocab_size, positions, dialect, seen=(rows, config.hidden_size), name="text_encoder"
            )
        memory = MemoryProjections(
            config.num_layers,
            lambda number: MemoryProjection(
                config,
                rows=rows,
                name=f"text_decoder.layers.{number}.encoder_attn",
                bias=True,
                in_size=int(text["encoder_hidden_size"]),
            ),
        )
        return _Vision(tower, reader, memory)

    def own_tokens(self, ids: Mapping[str, int]) -> dict[str, int]:
        """Return the token that begins every answer, which checkpoints give an id behind their vocabulary."""
        start = int(self._words["bos_token_id"])
        return {} if start in ids.values() else {_DEC: start}

    def image_prompt(self, found: FoundProcessor) -> EncodedPrompt:
        """Return no token for an image; the one that pads, which stands in no prompt, holds its place in a template.

        Raises:
            UnsupportedConfigError: The tokenizer names none, or answers end with another token than BERT's texts.
        """
        token, end = found.vocabulary.template_tokens.get("pad_token"), self._words["sep_token_id"]
        if token is None:
            raise UnsupportedConfigError("tokenizer_config.json names no pad_token, which holds an image's place")
        if found.vocabulary.id_of(_SEP, "the token that ends an answer") != end:
            raise UnsupportedConfigError(f"text_config.sep_token_id {end}: tokenizer.json gives {_SEP} another id")
        return EncodedPrompt(
            image_token=token,
            image_token_id=found.vocabulary.id_of(token, "pad_token"),
            tokens_per_tile=self._image_rows,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return a caption's beginning, or how every answer begins; the question goes to the encoder."""
        start = next(text for text, number in found.vocabulary.ids.items() if number == self._words["bos_token_id"])
        pad = found.vocabulary.template_tokens.get("pad_token", "")
        whole = _TEMPLATE if self._reads else _TEMPLATE + _BEGUN
        return whole.replace("{image}", pad).replace("{start}", start)
