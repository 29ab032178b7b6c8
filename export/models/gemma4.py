"""Gemma 4 (google/gemma-4-E2B, E4B): images of any shape, and a decoder that has numbers of each token for each layer.

Its audio tower is not built: its weights are left out, and requests with audio are refused as of every model.
"""

from __future__ import annotations

import re
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, SoftTokens
from bundle.layouts.gemma4 import Gemma4Prompt
from bundle.layouts.video_tokens import VideoTokens
from export.config import Raw, sub_config
from export.decoders.gemma4_text import Gemma4Text
from export.family import Family
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear
from export.nn.module import Module
from export.nn.norms import BareRMSNorm
from export.towers.gemma4 import Gemma4Tower, Gemma4TowerConfig
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {
    "tie_word_embeddings": True,
    "image_token_id": 258_880,
    "audio_token_id": 258_881,
    "video_token_id": 258_884,
}
_VIDEO = "<|video|>"
_VIDEO_DEFAULTS: Raw = {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 70}
"""Of transformers' Gemma4VideoProcessor."""
_MEDIA = ("image_token_id", "audio_token_id", "video_token_id")
"""Tokens that stand for what tables do not hold: padding is looked up in their place."""


class _Connector(Module):
    """A norm without a weight, and a matrix."""

    def __init__(self, config: Gemma4TowerConfig, out_size: int, eps: float, dialect: Dialect) -> None:
        super().__init__("model.embed_vision")
        self.norm = BareRMSNorm(config.hidden_size, eps, dialect)
        rows = config.usual_rows // config.pooled**2
        self.embedding_projection = Linear(config.hidden_size, out_size, rows=rows, bias=False)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.embedding_projection(op, self.norm(op, x))


class _Tables(Module):
    """Embeddings, and what a second table holds of tokens for each layer.

    Args:
        prefix: Where the checkpoint keeps both.
        tokens: The table of embeddings.
        per_layer: The other.
        media: Ids that stand for images, sounds and videos.
        padding: The id that is looked up in their place.
    """

    def __init__(self, prefix: str, tokens: Module, per_layer: Module, media: tuple[int, ...], padding: int) -> None:
        super().__init__(prefix)
        self.embed_tokens, self.embed_tokens_per_layer = tokens, per_layer
        self.media, self.padding = media, padding

    def forward(self, op: OpBuilder, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return [B, T, D] and [B, T, L*P] of ids [B, T]."""
        for own in self.media:
            ids = op.Where(op.Equal(ids, own), self.padding, ids)
        return self.embed_tokens(op, ids), self.embed_tokens_per_layer(op, ids)


class Gemma4(VisionLanguage):
    """`model_type` gemma4."""

    text_prefix = "model.language_model"
    default_text = "gemma4_text"
    image_processor = "Gemma4ImageProcessor"
    caps_logits: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.audio_tower\..*", r"model\.embed_audio\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._tower = Gemma4TowerConfig.read(sub_config(config, "vision_config"))

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
        return self._tower.patch_px * self._tower.pooled

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, and keys and values of layers that read another's, which first releases hold."""
        shared = [n for n in range(self.decoder.config.num_layers) if self.decoder.source_of(n) is not None]
        names = f"{re.escape(self.text_prefix)}\\.layers\\.({'|'.join(map(str, shared))})"
        keys = [rf"{names}\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*"] if shared else []
        return (*super().skipped(), *keys)

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the config ties them."""
        return super().stand_ins() if self.config["tie_word_embeddings"] else {}

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares of patches, of which each has a position.

        Raises:
            UnsupportedConfigError: They do not.
        """
        geometry = spec.geometry
        if not isinstance(geometry, SoftTokens) or geometry.step_px != self._unit_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry!r}, the vision tower takes squares of {self._tower.pooled} x "
                f"{self._tower.pooled} patches of {self._tower.patch_px} pixels: patch_size and pooling_kernel_size of "
                "the processor must be those of vision_config"
            )
        longest = geometry.most_tokens * self._tower.pooled
        if longest > self._tower.num_positions:
            raise UnsupportedConfigError(
                f"max_soft_tokens {geometry.most_tokens} of the processor: the longest image is {longest} patches "
                f"wide, vision_config.position_embedding_size is {self._tower.num_positions}"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        connector = _Connector(self._tower, self.state_size, self._tower.norm_eps, dialect)
        return Chain(Gemma4Tower(self._tower, dialect, "model.vision_tower"), connector)

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], and numbers for layers where it has some."""
        decoder = self.decoder
        per_layer = decoder.per_layer_table if isinstance(decoder, Gemma4Text) else None
        if per_layer is None:
            return super().table()
        sizes = decoder.config
        tokens = Embedding(sizes.vocab_size, sizes.hidden_size, scale=decoder.embedding_scale)
        media = tuple(int(self.config[key]) for key in _MEDIA if self.config.get(key) is not None)
        padding = int(self.text_config.get("pad_token_id") or 0)
        return _Tables(self.text_prefix, tokens, per_layer, media, padding)

    def image_prompt(self, found: FoundProcessor) -> Gemma4Prompt:
        """Return the tokens of an image between a start and an end.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<|image|>")
        start, end = found.token("boi_token", "<|image>"), found.token("eoi_token", "<image|>")
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        height, width = found.spec.tile_size_px
        return Gemma4Prompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(height // self._unit_px) * (width // self._unit_px),
            start_token=start,
            end_token=end,
            step_px=self._unit_px,
            video=self._video_tokens(found, (start, end)),
        )

    def with_frames(self, spec: ImageSpec, settings: Raw, source: str) -> ImageSpec:
        """Return the preprocessing with that of a video's frames, of fewer tokens than an image.

        Raises:
            UnsupportedConfigError: Frames of other patches than images.
        """
        if self.embedding is not None or not isinstance(spec.geometry, SoftTokens):
            return spec
        own = {**_VIDEO_DEFAULTS, **({} if "image_processor_type" in settings else settings)}
        if own["patch_size"] * own["pooling_kernel_size"] != self._unit_px:
            raise UnsupportedConfigError(
                f"{source}: patch_size {own['patch_size']} with pooling_kernel_size {own['pooling_kernel_size']}, "
                f"where images have squares of {self._unit_px} pixels; frames and images go through one tower"
            )
        geometry = spec.geometry.model_copy(update={"frame_tokens": int(own["max_soft_tokens"])})
        return spec.model_copy(update={"geometry": geometry})

    def _video_tokens(self, found: FoundProcessor, around: tuple[str, str]) -> VideoTokens | None:
        """Return the tokens of videos; None where frames are images."""
        geometry, token = found.spec.geometry, found.token("video_token", _VIDEO)
        has_frames = isinstance(geometry, SoftTokens) and geometry.frame_tokens is not None
        if not has_frames or token not in found.vocabulary.ids:
            return None
        token_id = found.vocabulary.id_of(token, "the video token")
        if token_id != self.config["video_token_id"]:
            raise UnsupportedConfigError(
                f"config.json: video_token_id {self.config['video_token_id']}, but tokenizer.json gives {token!r} the "
                f"id {token_id}"
            )
        return VideoTokens(token=token, token_id=token_id, num_frames=1, start_token=around[0], end_token=around[1])
