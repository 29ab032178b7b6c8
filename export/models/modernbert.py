"""ModernBERT over two texts and a score: gte-reranker-modernbert and the like."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.cross_encoder import PairTexts, TextReranker
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.modernbert import DEFAULTS, ModernBertConfig, ModernBertEmbeddings, ModernBertLayers
from export.nn.module import Module
from export.nn.vit import attention_bias


class _Tower(Module):
    def __init__(self, config: ModernBertConfig, dialect: Dialect) -> None:
        super().__init__("model")
        self.embeddings = ModernBertEmbeddings(config)
        self.stack = ModernBertLayers(config, dialect)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        places = op.Range(0, op.Squeeze(op.Shape(input_ids, start=1, end=2), [0]), 1)
        position_ids = op.Expand(op.Unsqueeze(places, [0]), op.Shape(input_ids))
        bias = attention_bias(op, attention_mask, is_causal=False)
        return self.stack(op, self.embeddings(op, input_ids), position_ids, bias)


class _Scorer(Module):
    def __init__(self, config: ModernBertConfig, raw: Raw, dialect: Dialect) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.model = _Tower(config, dialect)
        self.dense = Linear(size, size, rows=1, bias=bool(raw["classifier_bias"]), name="head.dense")
        self.norm = config.norm("head.norm")
        self.classifier = Linear(size, 1, rows=1)
        self.act, self.pooling = str(raw["classifier_activation"]), str(raw["classifier_pooling"])

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        pooled = self._pooled(op, self.model(op, input_ids, attention_mask), attention_mask)
        return op.Squeeze(self.classifier(op, self.norm(op, activation(op, self.act, self.dense(op, pooled)))), [1])

    def _pooled(self, op: OpBuilder, x: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, D]: the first token, or the mean of those that are real."""
        if self.pooling == "cls":
            return op.Gather(x, 0, axis=1)
        is_real = op.Cast(attention_mask, to=ir.DataType.FLOAT)
        total = op.ReduceSum(op.Mul(x, op.Unsqueeze(is_real, [2])), [1], keepdims=0)
        return op.Div(total, op.ReduceSum(is_real, [1], keepdims=1))


class ModernBertReranker(TextReranker):
    """`model_type` modernbert, with a head of one score."""

    architecture = "ModernBertForSequenceClassification"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._raw = {**DEFAULTS, **config}
        self._config = ModernBertConfig.read(self._raw)
        if (pooling := self._raw["classifier_pooling"]) not in ("cls", "mean"):
            raise UnsupportedConfigError(f"classifier_pooling is {pooling!r}; built are cls and mean")

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the texts."""
        return PairTexts(self._config.vocab_size, self._config.max_tokens)

    def pair(self, dialect: Dialect) -> Module:
        """Return tower and head."""
        return _Scorer(self._config, self._raw, dialect)
