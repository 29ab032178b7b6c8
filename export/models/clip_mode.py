"""Mixtures of data experts (MoDE, arXiv 2404.16030): several CLIPs, each of one cluster of captions, weighed by words.

Of an image the vector is theirs, each of length 1, side by side; of a text theirs, each times its weight. The dot
product of both is then the weighted sum of their cosines, over the root of their number, by which an image's vector is
divided to be of length 1. A last number, 0 of every image, makes that of a text.

The weights of a text by itself are in the graph. Those of a task of several texts, which classification wants, are made
of `task_distances` (bundle.data_experts).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.data_experts import TEMPERATURE, nearer_by, sharpness
from bundle.errors import UnsupportedConfigError
from bundle.manifest import ComponentName, TensorSpec
from export.config import Raw
from export.dual_encoder import DualEncoder, TextTower
from export.family import GraphPlan
from export.models.clip import Clip
from export.nn.dialect import Dialect
from export.nn.module import Module, ModuleList, Weight

_FAR = 1e30
"""A distance that is never the least."""
_ALIKE = ("image_size_px", "text_tower", "end")
"""What all experts have in common, for they read the same pixels and tokens."""


class _Images(Module):
    """The vector of an image, [I, N * E + 1]."""

    def __init__(self, experts: list[Module]) -> None:
        super().__init__()
        self.experts = ModuleList(experts)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        units = [_unit(op, expert(op, pixel_values)) for expert in self.experts]
        joined = op.Mul(op.Concat(*units, axis=1), 1 / math.sqrt(len(units)))
        return op.Concat(joined, op.Mul(op.Slice(joined, [0], [1], [1]), 0.0), axis=1)


class _Clusters(Module):
    """The fine centres [F, W], and the expert that each belongs to [F]."""

    def __init__(self, num: int, size: int, num_experts: int) -> None:
        super().__init__("clusters")
        self.center = Weight(num, size)
        self.assign = Weight(num)
        self.num_experts = num_experts

    def forward(self, op: OpBuilder, words: ir.Value) -> ir.Value:
        """Return [B, N] the distance of words [B, W] to the nearest fine centre of each expert."""
        center = op.Identity(self.center)  # no layer's weight: the nearest of many hangs on small differences
        apart = op.Sub(op.Unsqueeze(words, [1]), op.Unsqueeze(center, [0]))
        distances = op.ReduceL2(apart, [2], keepdims=0)
        own = [op.Equal(self.assign, float(number)) for number in range(self.num_experts)]
        least = [op.ReduceMin(op.Where(each, distances, _FAR), [1], keepdims=1) for each in own]
        return op.Concat(*least, axis=1)


class _Texts(Module):
    """The vector of a text, [B, N * E + 1], and the distances [B, N] that its weights were made of."""

    def __init__(self, experts: list[Module], words: Module, clusters: _Clusters) -> None:
        super().__init__()
        self.experts = ModuleList(experts)
        self.words = words
        self.clusters = clusters

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        distances = self.clusters(op, _unit(op, self.words(op, input_ids, attention_mask)))
        weights = self._weights(op, distances)
        of_each = op.Split(weights, axis=1, num_outputs=len(self.experts), _outputs=len(self.experts))
        units = [_unit(op, expert(op, input_ids, attention_mask)) for expert in self.experts]
        weighed = [op.Mul(unit, weight) for unit, weight in zip(units, of_each, strict=True)]
        left = op.Sub(1.0, op.ReduceSum(op.Mul(weights, weights), [1], keepdims=1))
        return op.Concat(*weighed, op.Sqrt(op.Relu(left)), axis=1), distances

    def _weights(self, op: OpBuilder, distances: ir.Value) -> ir.Value:
        """Return [B, N], each text being a task of its own."""
        least = op.ReduceMin(distances, [1], keepdims=1)
        near = op.Exp(op.Mul(op.Sub(nearer_by(1), least), sharpness(1)))
        counts = op.Where(op.Equal(distances, least), near, 0.0)
        return op.Softmax(op.Div(counts, TEMPERATURE), axis=1)


def _unit(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.LpNormalization(x, axis=-1, p=2)


class ClipMode(DualEncoder):
    """`model_type` clip_mode: folders `expert_0`, `expert_1`, ... of CLIPs and `words` of the text tower of a CLIP.

    Export puts their configs under `experts` and `words`, and their weights under those names
    (export.checkpoint.Checkpoint); `center` and `assign` are in the checkpoint's own file.
    """

    image_processor = "CLIPImageProcessor"
    pads_to_max = False
    renames = ((r"^(center|assign)$", r"clusters.\1"),)
    unused = (*DualEncoder.unused, r"words\.(vision_model|visual_projection)\..*", r"words\.logit_scale")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._experts = [_clip(each, f"expert_{number}") for number, each in enumerate(config["experts"])]
        self._words = _clip(config["words"], "words")
        for number, expert in enumerate(self._experts):
            found = [(name, getattr(expert, name), getattr(self._experts[0], name)) for name in _ALIKE]
            for name, own, first in found:
                if own != first:
                    raise UnsupportedConfigError(
                        f"expert_{number} has {name} {own}, expert_0 {first}: experts read the same pixels and tokens, "
                        "and give vectors of one size"
                    )
        read, first_read = self._words.text_tower, self._experts[0].text_tower
        if (read.vocab_size, read.max_text_tokens) != (first_read.vocab_size, first_read.max_text_tokens):
            raise UnsupportedConfigError(
                f"words reads {read.max_text_tokens} tokens of {read.vocab_size}, the experts "
                f"{first_read.max_text_tokens} of {first_read.vocab_size}: what says which expert counts reads the "
                "experts' tokens; one with a tokenizer of its own is not built"
            )
        self.scalars = tuple(f"experts.{number}.logit_scale" for number in range(self.data_experts))

    @property
    def data_experts(self) -> int:
        """N."""
        return len(self._experts)

    @property
    def image_size_px(self) -> int | None:
        """Side of the input."""
        return self._experts[0].image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        tower = self._experts[0].text_tower
        size = tower.embedding_size * self.data_experts + 1
        return TextTower(size, tower.vocab_size, tower.max_text_tokens, scoring="softmax")

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return the mean of the experts' scales, for the authors weigh cosines; and 0."""
        scales = [math.exp(scalar(name)) for name in self.scalars]
        return sum(scales) / len(scales) * math.sqrt(len(scales)), 0.0

    def vision(self, dialect: Dialect) -> Module:
        """Return the image towers."""
        return _Images([expert.vision(dialect) for expert in self._experts])

    def text(self, dialect: Dialect) -> Module:
        """Return the text towers, and what weighs them."""
        words = self._words
        clusters = _Clusters(int(self.config["num_clusters"]), words.embedding_size, self.data_experts)
        return _Texts([expert.text(dialect) for expert in self._experts], words.text(dialect), clusters)

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the two graphs; that of texts tells the distances to who asks for them."""
        plans = super().graphs(dialect)
        texts = plans["text_encoder"]
        told = TensorSpec(name=tensors.TASK_DISTANCES, dtype="float32", shape=("B", self.data_experts))
        plans["text_encoder"] = GraphPlan(texts.module, texts.role, texts.inputs, texts.outputs, (), (told,))
        return plans


def _clip(config: Raw, name: str) -> Clip:
    """Return the CLIP of a folder.

    Raises:
        UnsupportedConfigError: It is none.
    """
    kind = config.get("model_type")
    if kind not in ("clip", "clip_text_model"):
        raise UnsupportedConfigError(f"{name}/config.json: model_type is {kind!r}; CLIPs alone are built here")
    return Clip(config if kind == "clip" else {**config, "text_config": config, "vision_config": {}})
