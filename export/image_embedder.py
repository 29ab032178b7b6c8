"""An image tower by itself: a vector of each image, and nothing that reads texts."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import ComponentName, Task, TensorSpec
from export.family import Family, GraphPlan, pixels
from export.nn.dialect import Dialect
from export.nn.module import Module

_TOWER = "tower"


class ImageEmbedder(Family):
    """An image tower whose class token, after the last norm, is an image's vector.

    Checkpoints keep the tower at the root or, where a head of labels was trained over it, under its type's name; the
    head is left out.
    """

    task: ClassVar[Task] = "image-embedding"
    reads_texts = False
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?:(?:dinov2|dinov2_with_registers|vit)\.)?(embeddings|encoder|layernorm)\.", rf"{_TOWER}.\1."),
    )
    unused: ClassVar[tuple[str, ...]] = (rf"{_TOWER}\.embeddings\.mask_token", r"classifier\..*")

    @property
    @abstractmethod
    def embedding_size(self) -> int:
        """E."""

    @property
    def vocab_size(self) -> int:
        """1, the id of the canary that no graph is fed: there are no tokens."""
        return 1

    @abstractmethod
    def tower(self, dialect: Dialect, name: str) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> [I, E], under a name."""

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the graph of docs/bundle-format.md."""
        vectors = TensorSpec(name=tensors.IMAGE_EMBEDS, dtype="float32", shape=("I", self.embedding_size))
        module = _Vision(self.tower(dialect, _TOWER))
        return {"vision_encoder": GraphPlan(module, "vision_encoder", (pixels(self.image_size_px),), (vectors,))}


class _Vision(Module):
    def __init__(self, tower: Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.tower(op, pixel_values)
