"""ALIGN (arXiv 2102.05918): an EfficientNet, and a BERT whose first token is brought to the width of an image."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.bert import TEXT_DEFAULTS, Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.efficientnet import EfficientNetConfig, EfficientNetTower


class _Vision(Module):
    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.vision_model = EfficientNetTower(config, "vision_model")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.vision_model(op, pixel_values)


class _Text(Module):
    def __init__(self, config: BertConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        self.text_model = Bert(config, dialect)
        self.text_projection = Linear(config.tower.hidden_size, embedding_size, rows=1)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        hidden = self.text_model(op, input_ids, attention_mask)
        return self.text_projection(op, op.Gather(hidden, 0, axis=1))


class Align(DualEncoder):
    """`model_type` align; cosines are divided by a temperature."""

    scalars = ("temperature",)
    image_processor = "EfficientNetImageProcessor"
    pads_to_max = False
    unused = (*DualEncoder.unused, r".*\.num_batches_tracked", r"text_model\.pooler\..*")
    """The text tower has a pooler; nothing reads it here."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._vision = EfficientNetConfig.read(sub_config(config, "vision_config"))
        self._text = BertConfig.read(sub_config(config, "text_config"), TEXT_DEFAULTS)
        self._embedding_size = int(config.get("projection_dim", 640))
        if self._embedding_size != self._vision.size:
            raise UnsupportedConfigError(
                f"projection_dim {self._embedding_size} differs from the {self._vision.size} channels that images end "
                "in: the two embeddings cannot be compared"
            )

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self._embedding_size, self._text.vocab_size, self._text.max_tokens, scoring="softmax")

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return one over the temperature."""
        return 1 / scalar("temperature"), 0.0

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower."""
        return _Vision(self._vision)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Text(self._text, dialect, self._embedding_size)
