"""AltCLIP (arXiv 2211.06679): CLIP's image tower, and an XLM-R whose first token was taught to be CLIP's text."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from export.config import Raw, tower_config
from export.dual_encoder import TextTower
from export.models.clip import ClipImages
from export.nn.bert import ROBERTA_DEFAULTS, Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm

TEXT_DEFAULTS: Raw = {
    **ROBERTA_DEFAULTS,
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "project_dim": 768,
}


class _TextTower(Module):
    """A RoBERTa, normed once more, and its first token in the width of the teacher."""

    def __init__(self, config: BertConfig, teacher_size: int, dialect: Dialect) -> None:
        super().__init__("text_model")
        self.roberta = Bert(config, dialect)
        self.norm = LayerNorm(config.tower.hidden_size, config.tower.layer_norm_eps, name="pre_LN")
        self.transformation = Linear(config.tower.hidden_size, teacher_size, rows=1)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        first = op.Gather(self.roberta(op, input_ids, attention_mask), 0, axis=1)
        return self.transformation(op, self.norm(op, first))


class _Text(Module):
    def __init__(self, tower: _TextTower, teacher_size: int, embedding_size: int) -> None:
        super().__init__()
        self.text_model = tower
        self.text_projection = Linear(teacher_size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask))


class AltClip(ClipImages):
    """`model_type` altclip."""

    projection_dim = 768
    renames = (
        (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"^text_model\.roberta\.encoder\.layers\.", "text_model.roberta.encoder.layer."),
    )
    """transformers 5 calls the layers of both towers one or the other, 4 as the modules here are called."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        raw = tower_config(config, "text_config", TEXT_DEFAULTS)
        self._text = BertConfig.read(raw, {}, counts_behind_padding=True)
        self._teacher_size = int(raw["project_dim"])

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self.embedding_size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        tower = _TextTower(self._text, self._teacher_size, dialect)
        return _Text(tower, self._teacher_size, self.embedding_size)
