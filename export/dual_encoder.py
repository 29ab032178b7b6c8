"""What a dual encoder has to say: two towers into one space."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from bundle import tensors
from bundle.manifest import ComponentName, Task, TensorSpec
from export.family import Family, GraphPlan, pixels
from export.nn.dialect import Dialect
from export.nn.module import Module


@dataclass(frozen=True)
class TextTower:
    """What a dual encoder's text side wants of its caller.

    Attributes:
        embedding_size: E.
        vocab_size: Ids are below it.
        max_text_tokens: Longest text.
        scoring: As `bundle.dims.DualEncoderDims`.
    """

    embedding_size: int
    vocab_size: int
    max_text_tokens: int
    scoring: Literal["softmax", "sigmoid"]


class DualEncoder(Family):
    """An image tower and a text tower into one space.

    Class attributes:
        pads_to_max: Texts are padded to the longest length there is, as in training (SigLIP).
        pad_token_id: What they are padded with, where that is not the tokenizer's own.
        vectors: As `bundle.dims.DualEncoderDims`; graphs then give [I, P, E] and [B, T, E].
        prompt_template: As `bundle.dims.DualEncoderDims`.
        regions: As `bundle.dims.DualEncoderDims`; the vision graph then takes pixel_values and boxes [I, R, 4].
        replaced_tokens: As there.
    """

    task: ClassVar[Task] = "dual-encoder"
    vectors: ClassVar[Literal["one", "tokens"]] = "one"
    prompt_template: ClassVar[str] = "a photo of {}"
    regions: ClassVar[bool] = False
    replaced_tokens: int = 0
    pads_to_max: bool = True
    pad_token_id: int | None = None

    @property
    def data_experts(self) -> int:
        """Models that this one is of, as `bundle.dims.DualEncoderDims`."""
        return 1

    @property
    def num_patches(self) -> int | str:
        """P, vectors of an image where it has several; "P" where that varies."""
        return "P"

    def framed(self, tokenizer: str) -> str:
        """Return a `tokenizer.json` that writes what the model reads around a text."""
        return tokenizer

    @property
    @abstractmethod
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return what cosines are multiplied by, and what is added then; `scalar` reads one of `scalars`."""
        bias = scalar("logit_bias") if "logit_bias" in self.scalars else 0.0
        return math.exp(scalar("logit_scale")), bias

    @property
    def vocab_size(self) -> int:
        """Of the text tower."""
        return self.text_tower.vocab_size

    @abstractmethod
    def vision(self, dialect: Dialect) -> Module:
        """Return the module pixel_values [I, 3, height, width] -> image_embeds [I, E]."""

    @abstractmethod
    def text(self, dialect: Dialect) -> Module:
        """Return the module (input_ids, attention_mask) [B, T] -> text_embeds [B, E]."""

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the two graphs of docs/bundle-format.md."""
        width = self.text_tower.embedding_size
        of_image: tuple[int | str, ...] = ("I", width)
        of_text: tuple[int | str, ...] = ("B", width)
        if self.vectors == "tokens":
            of_image, of_text = ("I", self.num_patches, width), ("B", "T", width)
        if self.regions:
            of_image = ("I", "R", width)
        images = TensorSpec(name=tensors.IMAGE_EMBEDS, dtype="float32", shape=of_image)
        texts = TensorSpec(name=tensors.TEXT_EMBEDS, dtype="float32", shape=of_text)
        ids = TensorSpec(name=tensors.INPUT_IDS, dtype="int64", shape=("B", "T"))
        mask = TensorSpec(name=tensors.ATTENTION_MASK, dtype="int64", shape=("B", "T"))
        seen = [pixels(self.image_size_px)]
        if self.regions:
            seen.append(TensorSpec(name=tensors.BOXES, dtype="float32", shape=("I", "R", 4)))
        return {
            "vision_encoder": GraphPlan(self.vision(dialect), "vision_encoder", tuple(seen), (images,)),
            "text_encoder": GraphPlan(self.text(dialect), "text_encoder", (ids, mask), (texts,)),
        }
