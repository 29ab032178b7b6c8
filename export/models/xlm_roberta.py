"""RoBERTa and XLM-R over two texts and a score: bge-reranker-v2-m3, jina-reranker-v1, mmarco-mMiniLM and the like."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.cross_encoder import PairTexts, TextReranker
from export.nn.bert import ROBERTA_DEFAULTS, Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.pooler import FirstToken


class _Scorer(Module):
    """The tower and its head, whose first matrix is a pooler by another name."""

    def __init__(self, config: BertConfig, dialect: Dialect) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.roberta = Bert(config, dialect, "roberta")
        self.pooler = FirstToken(size, "classifier")
        self.out_proj = Linear(size, 1, rows=1, name="classifier.out_proj")

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return op.Squeeze(self.out_proj(op, self.pooler(op, self.roberta(op, input_ids, attention_mask))), [1])


class XlmRobertaReranker(TextReranker):
    """`model_type` xlm-roberta, with a head of one score."""

    architecture = "XLMRobertaForSequenceClassification"
    unused = (r".*\.position_ids", r".*\.token_type_ids", r"roberta\.pooler\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._config = BertConfig.read(config, ROBERTA_DEFAULTS, counts_behind_padding=True)
        if self._config.num_segments > 1:
            raise UnsupportedConfigError(
                f"type_vocab_size is {self._config.num_segments}; 1 is built, for RoBERTa's tokenizers give all tokens "
                "one type"
            )

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the texts."""
        return PairTexts(self._config.vocab_size, self._config.max_tokens)

    def pair(self, dialect: Dialect) -> Module:
        """Return tower and head."""
        return _Scorer(self._config, dialect)


class RobertaReranker(XlmRobertaReranker):
    """`model_type` roberta, with a head of one score."""

    architecture = "RobertaForSequenceClassification"
