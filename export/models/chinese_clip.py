"""Chinese-CLIP (arXiv 2211.01335): CLIP's image tower, and a BERT whose first token is the text."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, tower_config
from export.dual_encoder import TextTower
from export.models.clip import ClipImages
from export.nn.bert import TEXT_DEFAULTS, Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module


class _Text(Module):
    def __init__(self, config: BertConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.text_model = Bert(config, dialect)
        self.text_projection = Linear(config.tower.hidden_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        hidden = self.text_model(op, input_ids, attention_mask)
        return self.text_projection(op, op.Gather(hidden, 0, axis=1))


class ChineseClip(ClipImages):
    """`model_type` chinese_clip."""

    image_processor = "ChineseCLIPImageProcessor"
    unused = (*ClipImages.unused, r"text_model\.pooler\..*")
    """The text tower alone has a pooler; nothing reads it here."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._text = BertConfig.read(tower_config(config, "text_config", TEXT_DEFAULTS), {})

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self.embedding_size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Text(self._text, dialect, self.embedding_size)
