"""Florence-2 (arXiv 2311.06242): a DaViT, and a BART whose encoder reads image and question together."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.grounding import LocationGrounding
from bundle.layouts.florence2 import Florence2Prompt
from bundle.layouts.table import KnownImagePrompt
from export.config import DecoderConfig, Raw, TowerConfig, require, sub_config
from export.decoders.bart import DEFAULTS, EPS, MEMORY_ROWS
from export.family import Family
from export.found_processor import FoundProcessor
from export.image_processors.image_processor import edge_of
from export.nn.bart_encoder import BartEncoder
from export.nn.cross_attention import MemoryProjection, MemoryProjections
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.towers.davit import DaViT, read_stages
from export.vision_language import QuestionReading, VisionLanguage
from graphs.labels import Label

LANGUAGE = "model.language_model"
SHARED = f"{LANGUAGE}.shared.weight"
_PROJECTOR = "model.multi_modal_projector"
PROJECTION = f"{_PROJECTOR}.image_projection.weight"
_MOST_ROWS = 1024
"""Of image and question in the memory, as in training; a step attends over all of them, and a slot holds them."""
_PLACE = re.compile(r"<loc_\d+>")
_BINS = 1000
"""Of width and height (transformers, `Florence2PostProcessor`)."""
_MARKS = ("<poly>", "</poly>", "<sep>")
TASKS = {
    "<OCR>": "What is the text in the image?",
    "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OD>": "Locate the objects with category name in the image.",
    "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
    "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
    "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {input}",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {input} in the image with mask",
    "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {input}",
    "<OPEN_VOCABULARY_DETECTION>": "Locate {input} in the image.",
    "<REGION_TO_CATEGORY>": "What is the region {input}?",
    "<REGION_TO_DESCRIPTION>": "What does the region {input} describe?",
    "<REGION_TO_OCR>": "What text is in the region {input}?",
}
"""The questions that it was trained on, by the names that its users write (transformers, `Florence2Processor`)."""
# An answer begins with </s>, and <s> is its first token, which generation_config.json forces
_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('Florence-2 answers one message of a user about one image, and knows no conversation') }}"
    "{% endif %}{% if messages[0].content is not string %}{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{{ eos_token }}{{ bos_token }}"
)


class _Table(Module):
    """Learned rows of which places along one side have one each."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight(num_rows, size, label=Label("constant table"))

    def forward(self, op: OpBuilder, places: list[int]) -> ir.Value:
        return op.Gather(self.weight, places, axis=0)


class _ImagePlaces(Module):
    """Where a patch stands: half of its numbers by column, half by row."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.row_embeddings = _Table(num_rows, size // 2)
        self.column_embeddings = _Table(num_rows, size - size // 2)

    def forward(self, op: OpBuilder, height: int, width: int) -> ir.Value:
        """Return [height * width, size]."""
        columns = self.column_embeddings(op, list(range(width)) * height)
        rows = self.row_embeddings(op, [row for row in range(height) for _ in range(width)])
        return op.Concat(columns, rows, axis=1)


class _Projector(Module):
    """Patches at their places, and their mean before them, in the encoder's width."""

    def __init__(self, size: int, out_size: int, num_positions: int, grid: tuple[int, int], name: str) -> None:
        super().__init__(name)
        self.image_position_embed = _ImagePlaces(num_positions, size)
        self.image_projection = Linear(size, out_size, rows=grid[0] * grid[1] + 1, bias=False)
        self.image_proj_norm = LayerNorm(out_size, EPS)
        self.size, self.grid = size, grid

    def forward(self, op: OpBuilder, patches: ir.Value) -> ir.Value:
        """Return [I, 1 + N, out_size] of [I, N, size]."""
        first_frame = np.arange(self.size, dtype=np.float32) % 2  # sines and cosines of time 0, in turn
        placed = op.Add(patches, self.image_position_embed(op, *self.grid))
        placed = op.Add(placed, op.initializer(ir.tensor(first_frame), "first_frame"))
        rows = op.Concat(op.ReduceMean(placed, [1], keepdims=1), placed, axis=1)
        return self.image_proj_norm(op, self.image_projection(op, rows))


class _Vision(Module):
    """Pixels and a question to the keys and values of every layer of the decoder, [I, P + Q, 2 * layers * D]."""

    def __init__(
        self, tower: DaViT, projector: _Projector, encoder: BartEncoder, config: DecoderConfig, rows: int
    ) -> None:
        super().__init__()
        self.tower, self.projector, self.encoder = tower, projector, encoder
        self.memory = MemoryProjections(
            config.num_layers,
            lambda number: MemoryProjection(
                config, rows=rows, name=f"{Florence2.text_prefix}.layers.{number}.encoder_attn", bias=True
            ),
        )

    def forward(self, op: OpBuilder, pixel_values: ir.Value, question_ids: ir.Value) -> ir.Value:
        return self.memory(op, self.encoder(op, self.projector(op, self.tower(op, pixel_values)), question_ids))


class Florence2(VisionLanguage):
    """`model_type` florence2, in transformers' own layout; in Microsoft's it is `florence2_authors.py`.

    Class attributes:
        image_token: Marks an image in a template; nothing takes its place.
    """

    text_prefix = f"{LANGUAGE}.decoder"
    image_processor = "CLIPImageProcessor"
    image_token: ClassVar[str] = "<image>"
    template_placeholder = "<image>"
    reads_image_settings: ClassVar[bool] = True
    # sines and cosines of times, of which an image has the first
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r".*\.visual_temporal_embed\.pos_idx_to_embed")

    def __init__(self, config: Raw) -> None:
        super().__init__({"tie_word_embeddings": True, **config})
        self._raw_vision = sub_config(config, "vision_config")
        text = super().text_config
        require(text, [("tie_word_embeddings", True), ("scale_embedding", False)])
        start, end = text.get("decoder_start_token_id", 2), text.get("eos_token_id", 2)
        if start != end:
            raise UnsupportedConfigError(
                f"text_config.decoder_start_token_id {start}: answers are begun with the token that ends them, {end}"
            )

    @property
    def text_config(self) -> Raw:
        """BART's part of the config, and how large the decoder's memory is."""
        raw = {"model_type": "bart", **DEFAULTS, **super().text_config}
        return {**raw, MEMORY_ROWS: min(_MOST_ROWS, int(raw["max_position_embeddings"]))}

    @property
    def image_size_px(self) -> int:
        """Side of an image, which the image processor says."""
        side = edge_of(self.stated_images.get("size"))
        if side is None:
            raise UnsupportedConfigError(
                f"preprocessor: size {self.stated_images.get('size')!r}; the tower's grid is that of square images"
            )
        return side

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
        """What the encoder reads behind the image, in words of the same vocabulary."""
        room = int(self.text_config[MEMORY_ROWS]) - self._image_rows
        if room < 1:
            raise UnsupportedConfigError(
                f"{self._image_rows} rows of an image leave no room for a question among "
                f"{self.text_config[MEMORY_ROWS]}"
            )
        return QuestionReading(self.decoder.config.vocab_size, room, "", TASKS)

    @property
    def _image_rows(self) -> int:
        return read_stages(self._raw_vision, self.image_size_px)[-1].num_patches + 1

    def stand_ins(self) -> dict[str, str]:
        """Return the one table for both stacks, and for the output matrix where it is tied."""
        tables = {f"{LANGUAGE}.{stack}.embed_tokens.weight": SHARED for stack in ("encoder", "decoder")}
        return {**tables, "lm_head.weight": SHARED} if self.config["tie_word_embeddings"] else tables

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, projector, encoder, and the keys and values of the decoder's layers."""
        stages, text = read_stages(self._raw_vision, self.image_size_px), self.text_config
        full = {"projection_dim": 1024, "max_position_embeddings": 50, **self._raw_vision}
        require(full, [("projection_dim", text["d_model"])])
        projector = _Projector(
            stages[-1].size,
            text["d_model"],
            int(full["max_position_embeddings"]),
            stages[-1].grid,
            _PROJECTOR,
        )
        encoder = BartEncoder(
            _encoder_sizes(text),
            text["vocab_size"],
            int(text["max_position_embeddings"]),
            dialect,
            rows=self._image_rows,
            name=f"{LANGUAGE}.encoder",
        )
        tower = DaViT(stages, dialect, "model.vision_tower")
        return _Vision(tower, projector, encoder, self.decoder.config, self._image_rows)

    def image_prompt(self, found: FoundProcessor) -> Florence2Prompt:
        """Return no token for an image.

        Raises:
            UnsupportedConfigError: The token that stands for one is not in the vocabulary, or has another id.
        """
        token = found.token("image_token", self.image_token)
        token_id = found.image_token_id(self.config, token)
        return Florence2Prompt(image_token=token, image_token_id=token_id, tokens_per_tile=self._image_rows)

    def default_template(self, found: FoundProcessor) -> str:
        """Return how every answer begins; the question goes to the encoder."""
        return _TEMPLATE

    def grounding(self, found: FoundProcessor) -> LocationGrounding:
        """Return boxes and outlines by bins; which of the two an answer holds, its question says."""
        corners = "<OCR_WITH_REGION>"
        outlines = ("<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>")
        parts = [part for name in outlines for part in (name, *_fixed_parts(TASKS[name]))]
        return LocationGrounding(bins=_BINS, quads=(corners, TASKS[corners]), outlines=tuple(parts))

    def spoken_tokens(self, found: FoundProcessor, prompt: KnownImagePrompt, ends: Collection[int]) -> Collection[str]:
        """Return the places of boxes, and the marks of polygons."""
        return [token for token in found.vocabulary.ids if _PLACE.fullmatch(token) or token in _MARKS]


def _fixed_parts(words: str) -> list[str]:
    """Return the longest part of a question that is the same whatever it asks about."""
    return [max(words.split("{input}"), key=len).strip()]


def _encoder_sizes(text: Raw) -> TowerConfig:
    sizes = {
        "hidden_size": text["d_model"],
        "intermediate_size": text["encoder_ffn_dim"],
        "num_hidden_layers": text["encoder_layers"],
        "num_attention_heads": text["encoder_attention_heads"],
        "hidden_act": text["activation_function"],
        "layer_norm_eps": EPS,
    }
    return TowerConfig.read(sizes, sizes)
