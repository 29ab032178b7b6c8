"""Qwen2-VL (arXiv 2409.12191): a tower over images of any shape, and positions on three axes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import Area, ImageSpec
from bundle.layouts.prompt import ImagePrompt
from bundle.layouts.qwen2_vl import Qwen2VLPrompt
from bundle.layouts.table import KnownImagePrompt
from bundle.layouts.video_tokens import VideoTokens
from export.config import Raw, sub_config
from export.connectors.patch_merger import PatchMerger
from export.found_processor import FoundProcessor
from export.image_processors.videos import VideoSettings
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.patch_layers import PatchTowerConfig
from export.towers.qwen2_vl import Qwen2VLTower, tower_config
from export.vision_language import VisionLanguage

_EPS = 1e-6
_VIDEO = "<|video_pad|>"
TOWER = "model.visual"
"""Where checkpoints keep the tower."""


class PatchTower(Protocol):
    """What families of this kind read of their tower's sizes."""

    @property
    def patch_px(self) -> int:
        """Side of a patch."""

    @property
    def merged(self) -> int:
        """Side of the square of patches that becomes one token."""


class AnyShape(VisionLanguage):
    """A model whose images keep their shape, in whole squares of patches, and stand in height and width.

    Class attributes:
        text_type: The decoder's `model_type`, which older configs do not say.
        image_token: What the vocabulary calls it where no file says.
        video_settings: What the processor of videos does where no file says; None: frames are images.
        group_tokens: Around each group of a video's frames, behind the words that say when it was; empty: neither.
    """

    text_prefix = "model.language_model"
    text_type: ClassVar[str]
    image_token: ClassVar[str] = "<|image_pad|>"
    image_processor = "Qwen2VLImageProcessor"
    video_settings: ClassVar[VideoSettings | None] = None
    group_tokens: ClassVar[tuple[str, str]] = ("", "")
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        given = self.given_width
        if given is not None and given != self.decoder.config.hidden_size:
            raise UnsupportedConfigError(
                f"the vision tower gives features of width {given}, the decoder's hidden_size is "
                f"{self.decoder.config.hidden_size}"
            )

    @property
    def given_width(self) -> int | None:
        """The decoder's width by the tower's config; None where only the decoder's says it."""
        return None

    @property
    @abstractmethod
    def tower(self) -> PatchTower:
        """Sizes of the tower."""

    @property
    def tokens_per_second(self) -> float | None:
        """How far a second of a video is on the axis of time; None: a group of frames is one position."""
        return None

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config; older ones keep it among the rest."""
        return {**(self.config.get("text_config") or self.config), "model_type": self.text_type}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as squares of patches."""
        return

    @property
    def _unit_px(self) -> int:
        """Side of the square that becomes one token."""
        return self.tower.patch_px * self.tower.merged

    def image_text(self, prompt: ImagePrompt) -> str:
        """Return the image token between those that open and close an image."""
        return f"<|vision_start|>{prompt.image_token}<|vision_end|>"

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares of patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        if not isinstance(spec.geometry, Area) or spec.geometry.step_px != self._unit_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the vision tower takes squares of {self._unit_px} "
                "pixels: patch_size and merge_size of the processor must be patch_size and spatial_merge_size of "
                "vision_config"
            )

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return one image token for each square of patches.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token, unit = found.token("image_token", self.image_token), self._unit_px
        height, width = found.spec.tile_size_px
        return Qwen2VLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(height // unit) * (width // unit),
            step_px=unit,
            video=self._video_tokens(found),
        )

    def with_frames(self, spec: ImageSpec, settings: Raw, source: str) -> ImageSpec:
        """Return the preprocessing with that of a video's frames.

        Raises:
            UnsupportedConfigError: A setting that is not reproduced, or frames of other patches than images.
        """
        if self.video_settings is None or self.embedding is not None or not isinstance(spec.geometry, Area):
            return spec
        frames = self.video_settings.frames(settings, spec, source)
        return spec.model_copy(update={"geometry": spec.geometry.model_copy(update={"frames": frames})})

    def _video_tokens(self, found: FoundProcessor) -> VideoTokens | None:
        """Return the tokens of videos; None where frames are images."""
        geometry, token = found.spec.geometry, found.token("video_token", _VIDEO)
        if not isinstance(geometry, Area) or geometry.frames is None or token not in found.vocabulary.ids:
            return None
        start, end = self.group_tokens
        return VideoTokens(
            token=token,
            token_id=found.vocabulary.id_of(token, "the video token"),
            num_frames=geometry.frames.num_grouped,
            tokens_per_second=self.tokens_per_second,
            start_token=start,
            end_token=end,
        )


class _Vision(Module):
    def __init__(self, config: PatchTowerConfig, dialect: Dialect) -> None:
        super().__init__()
        rows, norm = config.usual_rows // config.merged**2, LayerNorm(config.hidden_size, _EPS)
        self.tower = Qwen2VLTower(config, dialect, TOWER)
        self.merger = PatchMerger(
            norm, config.hidden_size, config.out_size, config.merged, rows=rows, name=f"{TOWER}.merger"
        )

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        patches, grid = self.tower(op, pixel_values)
        return self.merger(op, patches, grid)


class Qwen2VL(AnyShape):
    """`model_type` qwen2_vl."""

    text_type = "qwen2_vl_text"
    takes_groups = True
    video_settings: ClassVar[VideoSettings | None] = VideoSettings(least_px=128 * 28 * 28, most_px=768 * 28 * 28)

    @property
    def tower(self) -> PatchTowerConfig:
        """Sizes of the tower."""
        return tower_config(sub_config(self.config, "vision_config"))

    @property
    def given_width(self) -> int:
        """The decoder's width by the tower's config."""
        return self.tower.out_size

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and merger."""
        return _Vision(self.tower, dialect)
