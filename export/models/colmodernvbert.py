"""ColModernVBERT (Teiletche et al., arXiv 2510.01149): ModernBERT reads tiles of SigLIP's; a vector for every token.

What stands in the place of a decoder looks both ways and keeps nothing: the bundle has no states.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir
import tokenizers
from onnxscript import OpBuilder

from bundle import tensors
from bundle.layouts.modernvbert import ModernVBertPrompt
from bundle.layouts.prompt import ImagePrompt
from bundle.manifest import TensorSpec
from bundle.text import Tokenizer
from export.config import Raw, sub_config
from export.connectors.pixel_shuffle import PixelShuffle
from export.embedding import Head, StateVectors
from export.family import GraphPlan
from export.found_processor import FoundProcessor
from export.models.idefics3 import Idefics3
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.modernbert import ModernBertConfig, ModernBertLayers
from export.nn.module import Module
from export.nn.vit import MASKED
from export.quantized.method import QuantizationMethod
from export.quantized.table import load_method
from export.towers.siglip import VISION_DEFAULTS, NormedSiglipTower

_TEXT = "vlm.text_model"
_HEAD = "embedding_proj_layer"
_NUM_AUGMENTING = 10
"""Tokens behind a query, whose vectors look for what the query does not say."""
_END = "<end_of_utterance>"
_NO_TOKEN = -1
"""Stands for a text's own tokens."""
_TEMPLATE = (
    "{%% for message in messages if message.role != 'system' %%}{%% for part in message.content %%}%(before)s"
    "{%% if part.type == 'image' %%}%(visual)s{%% else %%}%(query)s{{ part.text }}%(behind)s{%% endif %%}%(after)s"
    "{%% endfor %%}{%% endfor %%}"
)


class _Vision(Module):
    def __init__(self, family: ColModernVBert, dialect: Dialect) -> None:
        super().__init__()
        config, size = family.tower, family.state_size
        self.tower = NormedSiglipTower(config, dialect, "vlm.vision_model")
        width = config.tower.hidden_size
        self.connector = PixelShuffle(config.grid, width, size, family.factor, name="vlm.connector")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.connector(op, self.tower(op, pixel_values))


class _Text(Module):
    """Words and features, normed together, to states."""

    def __init__(self, config: ModernBertConfig, dialect: Dialect) -> None:
        super().__init__(_TEXT)
        self.norm = config.norm("embeddings.norm")
        self.stack = ModernBertLayers(config, dialect)

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value, bias: ir.Value) -> ir.Value:
        return self.stack(op, self.norm(op, x), position_ids, bias)


class _Embedder(Module):
    def __init__(self, config: ModernBertConfig, dialect: Dialect, vectors: StateVectors) -> None:
        super().__init__()
        self.text = _Text(config, dialect)
        self.head = vectors.module(config.tower.hidden_size)

    def forward(
        self, op: OpBuilder, inputs_embeds: ir.Value, position_ids: ir.Value, rows: ir.Value, around: ir.Value
    ) -> ir.Value:
        """Return [B, N, E] of the tokens `rows` [B, N]; `around` as of `bundle.tensors.SEEN_AROUND`."""
        states = self.text(op, inputs_embeds, position_ids, _bias(op, inputs_embeds, around))
        return self.head(op, op.GatherND(states, op.Unsqueeze(rows, [2]), batch_dims=1))


def _bias(op: OpBuilder, inputs_embeds: ir.Value, around: ir.Value) -> ir.Value:
    """Return [B, 1, T, T]: 0 where a token sees another of its own input, and not what is padded behind it."""
    places = op.Range(0, op.Squeeze(op.Shape(inputs_embeds, start=1, end=2), [0]), 1)
    first = op.Sub(places, op.Gather(around, 0, axis=0))
    last = op.Add(places, op.Gather(around, 1, axis=0))
    is_behind = op.GreaterOrEqual(places, op.Unsqueeze(first, [1, 3]))
    is_before = op.LessOrEqual(places, op.Unsqueeze(last, [1, 3]))
    return op.Where(op.And(is_behind, is_before), 0.0, MASKED)


class ColModernVBert(Idefics3):
    """`model_type` colmodernvbert, as transformers keeps it.

    Attributes:
        tower: Of images.
        factor: Side of the squares of patches that become one token.
    """

    text_prefix = _TEXT
    can_take_smaller_images = False
    looks_ahead = ModernVBertPrompt.looks_ahead
    renames = ((r"(connector\.modality_projection)\.weight$", r"\1.proj.weight"),)
    unused = (*Idefics3.unused, r"vlm\.vision_model\.head\..*")

    def __init__(self, config: Raw) -> None:
        vlm = sub_config(config, "vlm_config")
        vision = {**VISION_DEFAULTS, **sub_config(vlm, "vision_config")}
        super().__init__({**vlm, "vision_config": vision, "scale_factor": vlm.get("pixel_shuffle_factor", 4)})
        self.tower, self.factor = self._vision, self._factor
        self._text = ModernBertConfig.read(self.text_config)
        self._vectors = StateVectors("tokens", Head(_HEAD, int(config.get("embedding_dim", 128)), has_bias=True))
        self.embedding = self._vectors

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return self._text.vocab_size

    @property
    def state_size(self) -> int:
        """D."""
        return self._text.tower.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of a row of features."""
        return self.state_size

    @property
    def max_positions(self) -> int:
        """Longest prompt."""
        return self._text.max_tokens

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """Nothing: an encoder reads embeddings alone."""
        return ()

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights."""
        return load_method(self.config)

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        return _Vision(self, dialect)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing: vectors of all tokens are wanted, and none is left out."""
        return ()

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], not yet normed."""
        return Embedding(self.vocab_size, self.state_size, name=f"{_TEXT}.embeddings.tok_embeddings")

    def decoder_plan(self, dialect: Dialect, embeds: TensorSpec) -> GraphPlan:
        """Return the graph of embeddings to vectors, without states."""
        inputs = (
            embeds,
            TensorSpec(name=tensors.POSITION_IDS, dtype="int64", shape=("B", "T")),
            TensorSpec(name=tensors.LOGITS_INDICES, dtype="int64", shape=("B", "N")),
            TensorSpec(name=tensors.SEEN_AROUND, dtype="int64", shape=(2, "B", "T")),
        )
        width = self._vectors.size(self.state_size)
        vectors = TensorSpec(name=tensors.TOKEN_EMBEDS, dtype="float32", shape=("B", "N", width))
        return GraphPlan(_Embedder(self._text, dialect, self._vectors), "decoder", inputs, (vectors,))

    def decoder_dims(self) -> None:
        """Return None: it does not answer."""
        return

    def image_prompt(self, found: FoundProcessor) -> ModernVBertPrompt:
        """Return tiles with markers between fake tokens.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        return ModernVBertPrompt(**super().image_prompt(found).model_dump(exclude={"kind"}))

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return an image before the wish to describe it, and a text as a query, as the processor writes both."""
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(found.vocabulary.text))
        around = tokenizer.with_special_tokens([_NO_TOKEN])
        place = around.index(_NO_TOKEN)
        visual = f"<|begin_of_text|>User:{prompt.image_token}Describe the image.{_END}\nAssistant:"
        found.vocabulary.id_of(_END, "the token behind a query")
        pieces = {
            "before": "".join(map(tokenizer.piece, around[:place])),
            "visual": found.settings.get("visual_prompt_prefix") or visual,
            "query": found.settings.get("query_prefix") or "",
            "behind": _END * _NUM_AUGMENTING,
            "after": "".join(map(tokenizer.piece, around[place + 1 :])),
        }
        return _TEMPLATE % {name: f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for name, text in pieces.items()}
