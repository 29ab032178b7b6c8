"""LLM2CLIP (arXiv 2411.04997): CLIP's image tower beside a Llama 3 that reads texts, as microsoft/LLM2CLIP has it.

What is published is two checkpoints: one of images with the adapter of texts, and the language model. Export wants the
second as the folder `language_model` in the first (export.checkpoint.LANGUAGE_MODEL).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import tokenizers
from onnxscript import OpBuilder
from tokenizers import normalizers, processors

from bundle.errors import UnsupportedConfigError
from export.config import Raw, sub_config
from export.decoders.llama import Llama
from export.dual_encoder import TextTower
from export.models.clip import ClipImages
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.bidirectional_llama import BidirectionalLlama

_HEADER, _END = "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
"""Around a text, as LLM2Vec writes for Llama 3 (its `prepare_for_tokenization`)."""
_NUM_BEFORE = 5
"""Tokens before a text, the first of all among them; they are read, and no part of the mean (`skip_instruction`)."""
_LONGEST = 512
"""Tokens of a text, those around it among them (LLM2Vec, max_length)."""
_NUM_BLOCKS, _EXPANSION, _EPS = 4, 2, 1e-5
"""Of the adapter (microsoft/LLM2CLIP, eva_clip, TextProj)."""


class _Block(Module):
    """x + fn(norm(x)), two layers with a GELU between."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ln = LayerNorm(size, _EPS)
        self.wider = Linear(size, size * _EXPANSION, rows=1, name="fn.0")
        self.back = Linear(size * _EXPANSION, size, rows=1, name="fn.3")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Add(x, self.back(op, op.Gelu(self.wider(op, self.ln(op, x)))))


class _Adapter(Module):
    """Vectors of the language model to CLIP's, each made a unit before."""

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        blocks: Sequence[Module] = [_Block(size) for _ in range(_NUM_BLOCKS)]
        self.steps = (*blocks, LayerNorm(size, _EPS), Linear(size, embedding_size, rows=1))
        for number, step in enumerate(self.steps):
            setattr(self, str(number), step)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = op.LpNormalization(x, axis=-1, p=2)
        for step in self.steps:
            x = step(op, x)
        return x


class _Text(Module):
    def __init__(self, llama: Llama, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.text_model = BidirectionalLlama(llama.config, dialect, rows=_LONGEST, name="text_model")
        self.text_adapter = _Adapter(llama.config.hidden_size, embedding_size)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        hidden = self.text_model(op, input_ids, attention_mask)
        length = op.Squeeze(op.Shape(input_ids, start=1, end=2), [0])
        is_text = op.Cast(op.GreaterOrEqual(op.Range(0, length, 1), _NUM_BEFORE), to=ir.DataType.INT64)
        weight = op.Unsqueeze(op.Cast(op.Mul(attention_mask, is_text), to=ir.DataType.FLOAT), [2])
        total = op.ReduceSum(op.Mul(hidden, weight), [1], keepdims=0)
        return self.text_adapter(op, op.Div(total, op.ReduceSum(weight, [1], keepdims=0)))


class Llm2Clip(ClipImages):
    """`model_type` llm2clip: what a clip checkpoint with a language model in it becomes."""

    renames = (
        (r"^text_model\.model\.", "text_model."),
        (r"^text_adapter\.(text_adaptor|adaptor)\.", "text_adapter."),
    )
    unused = (*ClipImages.unused, r"text_model\.lm_head\.weight")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        raw = sub_config(config, "text_config")
        if raw.get("model_type") != "llama":
            raise UnsupportedConfigError(
                f"language_model/config.json: model_type is {raw.get('model_type')!r}; built is llama"
            )
        self._llama = Llama.read(raw)
        ends = raw.get("eos_token_id", 0)
        self.pad_token_id = int(ends[0] if isinstance(ends, list) else ends)

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self.embedding_size, self._llama.config.vocab_size, _LONGEST, scoring="softmax")

    def text(self, dialect: Dialect) -> Module:
        """Return language model, mean and adapter."""
        return _Text(self._llama, dialect, self.embedding_size)

    def framed(self, tokenizer: str) -> str:
        """Return a `tokenizer.json` that writes a user's turn around a text.

        Raises:
            UnsupportedConfigError: It is not Llama 3's.
        """
        backend = tokenizers.Tokenizer.from_str(tokenizer)
        before = [*backend.encode("").ids, *backend.encode(_HEADER, add_special_tokens=False).ids]
        end = backend.token_to_id(_END)
        if len(before) != _NUM_BEFORE or end is None:
            raise UnsupportedConfigError(
                f"tokenizer.json writes a user's turn as {len(before)} tokens and {_END} as {end}; LLM2CLIP is built "
                f"with a Llama 3, whose tokenizer writes {_NUM_BEFORE} before a text and has that token"
            )
        names = [str(backend.id_to_token(token)) for token in before]
        frame = [("<frame>", before, names), (_END, [end], [_END])]
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), *own])
        backend.post_processor = processors.TemplateProcessing(
            single=f"<frame> $A {_END}",
            special_tokens=[{"id": name, "ids": ids, "tokens": tokens} for name, ids, tokens in frame],
        )
        return str(backend.to_str(pretty=True))
