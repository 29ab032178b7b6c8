"""LLaVA-NeXT-Video (Zhang et al., 2024): LLaVA-NeXT whose videos' frames are pooled before the connector."""

from __future__ import annotations

from typing import Any

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, Pinpoints
from bundle.layouts.llava_next import LlavaNextPrompt
from bundle.layouts.video_tokens import VideoTokens
from export.config import Raw
from export.connectors.pooled_beside import PooledBeside
from export.found_processor import FoundProcessor
from export.image_processors.clip import CLIP, single_tile
from export.models.llava_next import LlavaNext
from export.nn.dialect import Dialect
from export.nn.module import Module

_POOLINGS = ("average", "max")
_STRIDE = 2
"""The processor counts a quarter of a frame's patches, whatever the config says."""
_VIDEO = "<video>"


class LlavaNextVideo(LlavaNext):
    """`model_type` llava_next_video."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        mode, stride = config.get("spatial_pool_mode", "average"), config.get("spatial_pool_stride", _STRIDE)
        if mode not in _POOLINGS or stride != _STRIDE:
            raise UnsupportedConfigError(
                f"spatial_pool_mode {mode!r} with spatial_pool_stride {stride!r}: frames are pooled by "
                f"{' or '.join(_POOLINGS)} over squares of {_STRIDE} patches a side, as the processor counts them; "
                "learned convolutions are not built, and no published checkpoint has one"
            )
        if self._vision.grid % _STRIDE:
            raise UnsupportedConfigError(
                f"vision_config: {self._vision.grid} patches a side of a tile are no whole squares of {_STRIDE}, of "
                "which the processor counts a quarter of the patches"
            )
        self._mode = mode

    @property
    def _tokens_per_frame(self) -> int:
        return int((self._vision.grid // _STRIDE) ** 2)

    @property
    def rows_per_tile(self) -> int:
        """A tile's patches, its squares of them, and the row that ends a line."""
        return super().rows_per_tile + self._tokens_per_frame

    def connector(self, dialect: Dialect) -> Module:
        """Return LLaVA's connector, of patches and of their squares."""
        size = self._vision.tower.hidden_size * len(self._layers)
        return PooledBeside(super().connector(dialect), self._vision.grid, _STRIDE, self._mode, size)

    def with_frames(self, spec: ImageSpec, settings: Raw, source: str) -> ImageSpec:
        """Return the preprocessing with that of a video's frames, which are one tile each.

        Raises:
            UnsupportedConfigError: Tiles of another size, or other colours or another filter than images'.
        """
        if self.embedding is not None or not isinstance(spec.geometry, Pinpoints):
            return spec
        side = self.image_size_px
        square = {"shortest_edge": side}, {"height": side, "width": side}
        given = {key: each for key, each in settings.items() if each is not None and key != "do_pad"}
        full: dict[str, Any] = {**CLIP.defaults, "size": square[0], "crop_size": square[1], **given}
        frames = single_tile(full, source)
        if frames.tile_size_px != (side, side):
            raise UnsupportedConfigError(
                f"{source}: frames of {frames.tile_size_px} pixels, the vision tower takes {side}; give size and "
                "crop_size of the tower"
            )
        for key, shared in (("image_mean", spec.mean), ("image_std", spec.std)):
            if tuple(given.get(key, shared)) != shared:
                raise UnsupportedConfigError(f"{source}: {key} {given[key]}, but of images {list(shared)}")
        return spec.model_copy(update={"geometry": spec.geometry.model_copy(update={"frames": frames})})

    def image_prompt(self, found: FoundProcessor) -> LlavaNextPrompt:
        """Return LLaVA-NeXT's, with a token for each square of a frame's patches.

        Raises:
            UnsupportedConfigError: As of LLaVA-NeXT, or the video token has another id than the config says.
        """
        plain, token = super().image_prompt(found), found.token("video_token", _VIDEO)
        is_known = isinstance(found.spec.geometry, Pinpoints) and found.spec.geometry.frames is not None
        if token not in found.vocabulary.ids or not is_known:
            return plain.model_copy(update={"tokens_per_pooled": self._tokens_per_frame})
        key = "video_token_index" if "video_token_index" in self.config else "video_token_id"
        token_id = found.vocabulary.id_of(token, "the video token")
        if (stated := self.config.get(key, token_id)) != token_id:
            raise UnsupportedConfigError(
                f"config.json: {key} {stated}, but tokenizer.json gives {token!r} the id {token_id}"
            )
        video = VideoTokens(token=token, token_id=token_id, num_frames=1)
        pooled_px = _STRIDE * self._vision.patch_size_px
        told = {"video": video, "tokens_per_pooled": self._tokens_per_frame, "pooled_px": pooled_px}
        return plain.model_copy(update=told)
