"""Finite discrete tokens (Chen et al., arXiv 2303.14865): CLIP's towers choose from a table that both share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require, sub_config, tower_config
from export.dual_encoder import TextTower
from export.models.clip import TEXT_DEFAULTS, ClipImages
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import Encoder, TextEmbeddings, attention_bias
from export.towers.clip import ClipTower

_EPS = 1e-5
"""Of the norms of queries, torch's own."""
_NEVER = -1e30
"""The score of what pads a batch."""


@dataclass(frozen=True)
class TableConfig:
    """The table of tokens.

    Attributes:
        num_tokens: Rows.
        size: E, their width.
        temperature: By which scores are divided; training lowered it to 0.01.
    """

    num_tokens: int
    size: int
    temperature: float

    @classmethod
    def read(cls, raw: Raw) -> TableConfig:
        """Return the table of `fdt_config`, under the names of the authors' own code.

        Raises:
            UnsupportedConfigError: Scores that are pooled or made weights otherwise than published, or no sizes.
        """
        require(raw, [("pool_type", "max"), ("att_func_type", "sparsemax")])
        sizes = {key: raw.get(key) for key in ("sd_num", "sd_dim", "sd_temperature")}
        if wrong := {key: value for key, value in sizes.items() if not isinstance(value, int | float) or value <= 0}:
            raise UnsupportedConfigError(f"config.json: fdt_config has {wrong}; each is a number above 0")
        return cls(int(sizes["sd_num"] or 0), int(sizes["sd_dim"] or 0), float(sizes["sd_temperature"] or 0))


class _Query(Module):
    """Patches or words to how near each is to each token of the table (section 3.2, equation 2)."""

    def __init__(self, name: str, width: int, table: TableConfig, rows: int) -> None:
        super().__init__(name)
        size = table.size
        self.norm = LayerNorm(width, _EPS, name="q_map.0")
        self.first = Linear(width, size, rows=rows, name="q_map.1")
        self.inner_norm = LayerNorm(size, _EPS, name="q_map.3")
        self.second = Linear(size, size, rows=rows, name="q_map.4")
        self.scale = 1 / (math.sqrt(size) * table.temperature)

    def forward(self, op: OpBuilder, x: ir.Value, table: ir.Value) -> ir.Value:
        """Return [B, T, N] from [B, T, D] and the table [N, E]."""
        inner = op.Gelu(self.first(op, self.norm(op, x)))
        query = self.second(op, self.inner_norm(op, inner))
        return op.Mul(op.MatMul(query, op.Transpose(table, perm=[1, 0])), self.scale)


def sparsemax(op: OpBuilder, scores: ir.Value, num: int) -> ir.Value:
    """Return [B, N] weights of sum 1, mostly 0: the nearest point of the simplex (arXiv 1602.02068, algorithm 1).

    The threshold is (s_1 + ... + s_k - 1) / k, of scores in falling order, for the k at which it is greatest.
    """
    ordered, _ = op.TopK(scores, [num], axis=-1, _outputs=2)
    sums = op.CumSum(ordered, 1)
    counts = op.Cast(op.Range(1, num + 1, 1), to=ir.DataType.FLOAT)
    threshold = op.ReduceMax(op.Div(op.Sub(sums, 1.0), counts), [1], keepdims=1)
    return op.Relu(op.Sub(scores, threshold))


class _Chosen(Module):
    """What both sides have: the table, and how it is chosen from."""

    def __init__(self, table: TableConfig) -> None:
        super().__init__()
        self.space_dict = Weight(table.num_tokens, table.size)
        self.num_tokens = table.num_tokens

    def table(self, op: OpBuilder) -> ir.Value:
        """Return [N, E], no layer's weight: it is read twice, and what is chosen hangs on small differences."""
        return op.Identity(self.space_dict)

    def chosen(self, op: OpBuilder, scores: ir.Value, table: ir.Value) -> ir.Value:
        """Return [B, E], the table's rows weighed by scores [B, N] (section 3.2, equations 3 and 4)."""
        return op.MatMul(sparsemax(op, scores, self.num_tokens), table)


class _Vision(_Chosen):
    def __init__(self, config: VisionConfig, table: TableConfig, dialect: Dialect) -> None:
        super().__init__(table)
        self.vision_model = ClipTower(config, dialect, "vision_model")
        self.query = _Query("img_query_model", config.tower.hidden_size, table, config.grid**2)
        self.num_rows = config.grid**2 + 1

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        states, table = self.vision_model(op, pixel_values).states[-1], self.table(op)
        patches = op.Slice(states, [1], [self.num_rows], [1])
        return self.chosen(op, op.ReduceMax(self.query(op, patches, table), [1], keepdims=0), table)


class _Words(Module):
    def __init__(self, raw: Raw, dialect: Dialect) -> None:
        super().__init__("text_model")
        tower = TowerConfig.read(raw, {})
        self.embeddings = TextEmbeddings(raw["vocab_size"], raw["max_position_embeddings"], tower.hidden_size)
        self.encoder = Encoder(tower, dialect, rows=self.embeddings.num_rows)
        self.final_layer_norm = LayerNorm(tower.hidden_size, tower.layer_norm_eps)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=True)
        return self.final_layer_norm(op, self.encoder(op, self.embeddings(op, input_ids), bias).states[-1])


class _Text(_Chosen):
    """Words and what stands in the place of absent ones: a score of 0, as in the authors' own code."""

    def __init__(self, raw: Raw, table: TableConfig, dialect: Dialect) -> None:
        super().__init__(table)
        self.text_model = _Words(raw, dialect)
        self.longest = int(raw["max_position_embeddings"])
        self.query = _Query("txt_query_model", int(raw["hidden_size"]), table, self.longest)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        table, is_real = self.table(op), op.Cast(attention_mask, to=ir.DataType.BOOL)
        scores = self.query(op, self.text_model(op, input_ids, attention_mask), table)
        best = op.ReduceMax(op.Where(op.Unsqueeze(is_real, [2]), scores, _NEVER), [1], keepdims=0)
        is_short = op.Less(op.ReduceSum(attention_mask, [1], keepdims=1), self.longest)
        return self.chosen(op, op.Where(is_short, op.Relu(best), best), table)


class ClipFdt(ClipImages):
    """`model_type` clip_fdt: CLIP's config and names, `fdt_config`, `space_dict` and two query models."""

    unused = (
        *ClipImages.unused,
        r"(visual|text)_projection\.(weight|bias)",
        r"vision_model\.post_layernorm\.(weight|bias)",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._text = tower_config(config, "text_config", TEXT_DEFAULTS)
        self._table = TableConfig.read(sub_config(config, "fdt_config"))

    @property
    def embedding_size(self) -> int:
        """E."""
        return self._table.size

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        vocab_size, longest = self._text["vocab_size"], self._text["max_position_embeddings"]
        return TextTower(self.embedding_size, int(vocab_size), int(longest), scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower, its query model and the table."""
        return _Vision(self._vision, self._table, dialect)

    def text(self, dialect: Dialect) -> Module:
        """Return the tower, its query model and the table."""
        return _Text(self._text, self._table, dialect)
