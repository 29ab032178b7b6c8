"""T5Gemma 2 (arXiv 2512.14856): a SigLIP tower, a Gemma 3 that reads image and text, one that answers.

Checkpoints are of pretraining: what they answer is how a text goes on, or what lacks in one.
"""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.florence2 import Florence2Prompt
from export.config import Raw, VisionConfig, sub_config
from export.connectors.mean_pool import MeanPool
from export.decoders.bart import MEMORY_ROWS
from export.decoders.gemma import GemmaNorm
from export.decoders.gemma3_text import DEFAULTS, Gemma3Text
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.cross_attention import MemoryProjection, MemoryProjections
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.siglip import VISION_DEFAULTS, NormedSiglipTower
from export.towers.t5gemma2_encoder import EndedEmbedding, GemmaEncoder
from export.vision_language import QuestionReading, VisionLanguage

_ENCODER, _DECODER = "model.encoder", "model.decoder"
_TABLE = f"{_ENCODER}.text_model.embed_tokens"
_DEFAULTS: Raw = {"tie_word_embeddings": True, "image_token_index": 256_001}
_ENCODER_DEFAULTS: Raw = {"mm_tokens_per_image": 256, "eoi_token_index": 256_000}
_MOST_ROWS = 1024
"""Of image and question in the memory; a step attends over all of them, and a slot holds them."""
_LINE = "\n\n"
"""Around an image, as Gemma 3's processor writes it."""
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('T5Gemma 2 goes on with one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% if messages[0].content is not string %}{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}{image}{% endif %}{% endfor %}{% endif %}{{ bos_token }}"
)


class _Vision(Module):
    """Pixels and a question to the keys and values of every layer of the decoder, [I, Q, 2 * layers * K * C]."""

    def __init__(self, tower: Module, pool: Module, encoder: Module, memory: MemoryProjections) -> None:
        super().__init__()
        self.tower, self.pool, self.encoder, self.memory = tower, pool, encoder, memory

    def forward(self, op: OpBuilder, pixel_values: ir.Value, question_ids: ir.Value) -> ir.Value:
        features = self.pool(op, self.tower(op, pixel_values))
        return self.memory(op, self.encoder(op, features, question_ids))


class T5Gemma2(VisionLanguage):
    """`model_type` t5gemma2."""

    text_prefix = _DECODER
    image_processor = "Gemma3ImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^lm_head\.out_proj\.", "lm_head."),
        (r"^model\.encoder\.(layers|embed_tokens|norm)\.", r"model.encoder.text_model.\1."),
        (r"^model\.encoder\.vision_tower\.vision_model\.", "model.encoder.vision_tower."),
    )
    # the connector reads patches: what pools them for a dual encoder has no effect
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.encoder\.vision_tower\.head\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._encoder = {**_ENCODER_DEFAULTS, **sub_config(config, "encoder")}
        self._vision = VisionConfig.read(sub_config(self._encoder, "vision_config"), VISION_DEFAULTS)
        num, grid = self._encoder["mm_tokens_per_image"], self._vision.grid
        self._side = isqrt(num)
        if self._side**2 != num or grid % self._side:
            raise UnsupportedConfigError(
                f"encoder.mm_tokens_per_image {num}: built are squares of numbers that divide the {grid} patches of an "
                "image's side"
            )
        self._words = {**DEFAULTS, **sub_config(self._encoder, "text_config")}
        self._sizes = Gemma3Text.read(self._words)
        read, said = self._sizes.config, self.decoder.config
        if (read.hidden_size, read.vocab_size) != (said.hidden_size, said.vocab_size):
            raise UnsupportedConfigError(
                f"encoder.text_config has states of {read.hidden_size} numbers and {read.vocab_size} tokens, decoder "
                f"{said.hidden_size} and {said.vocab_size}: built are halves of one width and vocabulary"
            )
        if not self.config["tie_word_embeddings"]:
            raise UnsupportedConfigError(
                "tie_word_embeddings false: both halves and the output matrix of T5Gemma 2 have one table"
            )

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how large its memory is."""
        raw = {**sub_config(self.config, "decoder"), "model_type": "t5gemma2_decoder"}
        return {**raw, MEMORY_ROWS: self._most_rows}

    @property
    def _most_rows(self) -> int:
        words = {**DEFAULTS, **sub_config(sub_config(self.config, "encoder"), "text_config")}
        return min(_MOST_ROWS, int(words["max_position_embeddings"]))

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> None:
        """None: features take no place in a prompt."""
        return

    @property
    def feature_size(self) -> int:
        """Keys and values of all layers of the decoder."""
        config = self.decoder.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_size

    @property
    def question(self) -> QuestionReading:
        """What the encoder reads behind the image, which it reads in its place among tokens."""
        return QuestionReading(self.vocab_size, self._most_rows, "")

    def before_questions(self, found: FoundProcessor) -> tuple[str, str]:
        """Return the tokens of the image between a start and an end, in lines of their own."""
        bos = found.vocabulary.template_tokens.get("bos_token", "")
        image, start, end = _tokens(found)
        return f"{bos}{_LINE}{start}{image * self._side**2}{end}", _LINE

    def stand_ins(self) -> dict[str, str]:
        """Return the one table for both halves, and for the output matrix."""
        return {
            "lm_head.weight": f"{_TABLE}.weight",
            f"{_DECODER}.embed_tokens.weight": f"{_TABLE}.weight",
            f"{_DECODER}.embed_tokens.eoi_embedding": f"{_TABLE}.eoi_embedding",
        }

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D]."""
        return self._embedding(f"{_DECODER}.embed_tokens")

    def _embedding(self, name: str | None = None) -> EndedEmbedding:
        end_id = int(self._encoder["eoi_token_index"])
        return EndedEmbedding(self.decoder.config, self.decoder.embedding_scale, end_id, name)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, connector, encoder, and the keys and values of the decoder's layers."""
        tower, config = self._vision.tower, self.decoder.config
        pool = MeanPool(
            self._vision.grid,
            self._vision.grid // self._side,
            tower.hidden_size,
            config.hidden_size,
            tower.layer_norm_eps,
            dialect,
            name=f"{_ENCODER}.multi_modal_projector",
        )
        rows = self._side**2
        encoder = GemmaEncoder(
            self._sizes,
            int(self._words["sliding_window"] or self._most_rows),
            self._embedding(),
            (int(self.config["image_token_index"]), rows),
            dialect,
            rows=rows,
            name=f"{_ENCODER}.text_model",
        )
        memory = MemoryProjections(
            config.num_layers,
            lambda number: MemoryProjection(
                config,
                rows=rows,
                name=f"{_DECODER}.layers.{number}.self_attn",
                norm=GemmaNorm(config.head_size, config.rms_norm_eps, dialect),
                bias=config.qkv_bias,
            ),
        )
        return _Vision(NormedSiglipTower(self._vision, dialect, f"{_ENCODER}.vision_tower"), pool, encoder, memory)

    def image_prompt(self, found: FoundProcessor) -> Florence2Prompt:
        """Return no token for an image.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        num = self._side**2
        stated = int(found.settings.get("image_seq_length", num))
        if stated != num:
            raise UnsupportedConfigError(
                f"image_seq_length {stated} of the processor, and mm_tokens_per_image {num} of the model: each image "
                "would have another number of tokens than of features"
            )
        image, start, end = _tokens(found)
        found.vocabulary.id_of(start, "the token before an image")
        end_id, wanted = found.vocabulary.id_of(end, "the token behind an image"), int(self._encoder["eoi_token_index"])
        if end_id != wanted:
            raise UnsupportedConfigError(
                f"encoder.eoi_token_index {wanted}, but tokenizer.json gives {end!r} the id {end_id}"
            )
        token_id = found.image_token_id(self.config, image)
        return Florence2Prompt(image_token=image, image_token_id=token_id, tokens_per_tile=num)

    def default_template(self, found: FoundProcessor) -> str:
        """Return how every answer begins; what it goes on with is the encoder's."""
        return _TEMPLATE.replace("{image}", _tokens(found)[0])


def _tokens(found: FoundProcessor) -> tuple[str, str, str]:
    """Return the tokens in whose place an image's features stand, before them and behind."""
    named = (("image_token", "<image_soft_token>"), ("boi_token", "<start_of_image>"), ("eoi_token", "<end_of_image>"))
    image, start, end = (found.token(*each) for each in named)
    return image, start, end
