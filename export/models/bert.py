"""BERT over two texts and a score (Nogueira and Cho, arXiv 1901.04085): bge-reranker, ms-marco-MiniLM and the like."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw
from export.cross_encoder import PairTexts, TextReranker
from export.nn.bert import TEXT_DEFAULTS, BertConfig, PooledBert
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module


class _Scorer(Module):
    def __init__(self, config: BertConfig, dialect: Dialect, *, reads_segments: bool) -> None:
        super().__init__()
        self.bert = PooledBert(config, dialect, "bert", reads_segments=reads_segments)
        self.classifier = Linear(config.tower.hidden_size, 1, rows=1)

    def forward(
        self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, token_type_ids: ir.Value | None = None
    ) -> ir.Value:
        return op.Squeeze(self.classifier(op, self.bert(op, input_ids, attention_mask, token_type_ids)), [1])


class BertReranker(TextReranker):
    """`model_type` bert, with a head of one score."""

    architecture = "BertForSequenceClassification"
    unused = (r".*\.position_ids", r".*\.token_type_ids")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._config = BertConfig.read(config, TEXT_DEFAULTS)
        self.tells_texts_apart = self._config.num_segments > 1

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the texts."""
        return PairTexts(self._config.vocab_size, self._config.max_tokens)

    def pair(self, dialect: Dialect) -> Module:
        """Return tower, pooler and head."""
        return _Scorer(self._config, dialect, reads_segments=self.tells_texts_apart)
