"""DINOv2 beside RoBERTa, brought together by deep projections of every token (arXiv 2409.19425, mayug/freeze-align).

`model_type` freeze_align: `config.json` has `vision_config` and `text_config` of the two towers as transformers writes
them, `projection_dim` (embed_dim there) and the projections and poolings by the names of freeze-align's configs.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, require
from export.dual_encoder import DualEncoder, TextTower
from export.models.vision_text_dual_encoder import TEXTS, part
from export.nn.bert import Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.dinov2 import Dinov2Tower, read_dinov2

_EPS = 1e-5
_KINDS = ("linear", "mlp", "patch")
_PROJECTIONS = ("local_vision_projection", "cls_vision_projection", "local_text_projection", "text_projection")
_POOLINGS = ("mean", "max")


class _Mlp(Module):
    """A matrix, and what two layers add to what it gives, normed (ProjectionHead of freeze-align)."""

    def __init__(self, taken: int, given: int, *, rows: int, name: str) -> None:
        super().__init__(name)
        self.projection = Linear(taken, given, rows=rows)
        self.fc = Linear(given, given, rows=rows)
        self.layer_norm = LayerNorm(given, _EPS)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        projected = self.projection(op, x)
        return self.layer_norm(op, op.Add(self.fc(op, op.Gelu(projected)), projected))


class _Patch(Module):
    """A norm, then a matrix beside two layers of the same, summed (Patch_Projection of freeze-align)."""

    def __init__(self, taken: int, given: int, *, rows: int, name: str) -> None:
        super().__init__(name)
        self.norm = LayerNorm(taken, _EPS, name="0")
        self.straight = Linear(taken, given, rows=rows, name="2.linear_projection.0")
        self.first = Linear(taken, given, rows=rows, name="2.non_linear_projection.0")
        self.second = Linear(given, given, rows=rows, name="2.non_linear_projection.2")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        x = self.norm(op, x)
        return op.Add(self.straight(op, x), self.second(op, op.Gelu(self.first(op, x))))


def _projection(kind: str, taken: int, given: int, *, rows: int, name: str) -> Module:
    if kind == "linear":
        return Linear(taken, given, rows=rows, name=name)
    return (_Mlp if kind == "mlp" else _Patch)(taken, given, rows=rows, name=name)


class _Vision(Module):
    """What all patches became, projected and pooled, and the class token's projection."""

    def __init__(self, tower: Dinov2Tower, local: Module, of_class: Module, *, takes_largest: bool) -> None:
        super().__init__()
        self.tower, self.local, self.of_class = tower, local, of_class
        self.takes_largest = takes_largest

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        hidden = self.tower(op, pixel_values)
        patches = self.local(op, op.Slice(hidden, [1], [2**31 - 1], [1]))
        pooled = (op.ReduceMax if self.takes_largest else op.ReduceMean)(patches, [1], keepdims=0)
        return op.Add(pooled, self.of_class(op, op.Gather(hidden, 0, axis=1)))


class _Text(Module):
    """The mean of all tokens, each projected, and a projection of it."""

    def __init__(self, config: BertConfig, dialect: Dialect, local: Module, last: Module) -> None:
        super().__init__()
        self.tower = Bert(config, dialect, "text_encoder")
        self.local, self.last = local, last

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        tokens = self.local(op, self.tower(op, input_ids, attention_mask))
        weight = op.Unsqueeze(op.Cast(attention_mask, to=ir.DataType.FLOAT), [2])
        total = op.ReduceSum(op.Mul(tokens, weight), [1], keepdims=0)
        return self.last(op, op.Div(total, op.ReduceSum(weight, [1], keepdims=0)))


class FreezeAlign(DualEncoder):
    """`model_type` freeze_align."""

    scalars = ("temp",)
    image_processor = "BitImageProcessor"
    pads_to_max = False
    unused = (
        *DualEncoder.unused,
        r".*\.embeddings\.token_type_ids",
        r"visual_encoder\.embeddings\.mask_token",
        r"text_encoder\.pooler\..*",
    )
    image_size_px = None

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        images, _ = part(config, "vision_config", {"dinov2": {}})
        texts, kind = part(config, "text_config", TEXTS)
        require(config, [("text_pooling", "mean")])
        self._vision = read_dinov2(images)
        self._text = BertConfig.read(texts, {}, counts_behind_padding=kind != "bert")
        self._size = int(config.get("projection_dim", 1024))
        unknown = {key: config.get(key) for key in _PROJECTIONS if config.get(key) not in _KINDS}
        if unknown or config.get("vis_pooling", "mean") not in _POOLINGS:
            raise UnsupportedConfigError(
                f"config.json: {unknown or config['vis_pooling']!r}; projections that are built are "
                f"{', '.join(_KINDS)}, of vis_pooling {' and '.join(_POOLINGS)}"
            )
        if self._text.tower.hidden_size != self._size:
            raise UnsupportedConfigError(
                f"projection_dim {self._size} is not the {self._text.tower.hidden_size} of the text tower, which the "
                "second of its two projections takes"
            )

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return one over the temperature, and nothing that is added."""
        return 1 / scalar("temp"), 0.0

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self._size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and both projections."""
        tower = Dinov2Tower(self._vision, dialect, "visual_encoder", pools=False)
        local = self._projected("local_vision", self._vision.tower.hidden_size, rows=tower.embeddings.num_rows)
        of_class = self._projected("cls_vision", self._vision.tower.hidden_size, rows=1)
        return _Vision(tower, local, of_class, takes_largest=self.config.get("vis_pooling") == "max")

    def text(self, dialect: Dialect) -> Module:
        """Return tower and both projections."""
        size = self._text.tower.hidden_size
        local = self._projected("local_text", size, rows=self._text.max_tokens)
        return _Text(self._text, dialect, local, self._projected("text", size, rows=1))

    def _projected(self, which: str, taken: int, *, rows: int) -> Module:
        kind = str(self.config[f"{which}_projection"])
        return _projection(kind, taken, self._size, rows=rows, name=f"{which}_proj")
