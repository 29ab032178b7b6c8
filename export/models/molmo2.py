"""Molmo 2 (Clark et al., Ai2, 2025): crops that overlap, windows pooled across their borders, and a Qwen3."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.grounding import PointGrounding
from bundle.image import ImageSpec, OverlappingCrops
from bundle.layouts.molmo2 import Molmo2Prompt
from bundle.layouts.prompt import LooksAhead
from bundle.layouts.video_tokens import VideoTokens
from export.config import Raw, require, sub_config
from export.connectors.pooled_windows import PooledWindows, PoolSizes
from export.decoders.molmo2_text import DEFAULTS as TEXT_DEFAULTS
from export.found_processor import FoundProcessor
from export.image_processors.image_processor import edge_of
from export.image_processors.molmo2 import MOLMO2
from export.nn.dialect import Dialect
from export.nn.linear import Embedding
from export.nn.module import Module, Weight
from export.quantized.joined_tables import JoinedTables
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import one_after_another
from export.towers.molmo2 import Molmo2Tower, Overlap, plain_heads, read_tower
from export.vision_language import VisionLanguage

_ADAPTER: Raw = {
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "head_dim": 72,
    "hidden_act": "silu",
    "intermediate_size": 18_944,
    "text_hidden_size": 3584,
}
_LAYERS = (24, 18)
_OLDER_TABLE = ("wte.embedding", "wte.new_embedding")
_TOWER, _PROJECTOR = "model.vision_tower", "model.multi_modal_projector"
_FOR_IMAGE = "<|image|>"
"""What chat templates write for an image."""
_FOR_VIDEO, _PATCH = "<|video|>", "<im_patch>"
_POINT_SCALE = 1000
"""Of points in answers (the model's card)."""
_FRAME_POOL = (3, 3)
"""Windows of a frame, in patches: transformers' and the published processors' `pooling_size` of videos."""


class _Placeholder(Module):
    """The row of the table of tokens to which features are added, for the model adds them to their tokens'."""

    def __init__(self, row: int, size: int, name: str) -> None:
        super().__init__(name)
        self.weight = Weight(1, size, rows=(row, row + 1))

    def forward(self, op: OpBuilder, features: ir.Value) -> ir.Value:
        return op.Add(features, self.weight)


class _Vision(Module):
    """A canvas [I, 3, height, width] of crops to rows of the decoder's width, [I, N, D]."""

    def __init__(self, tower: Molmo2Tower, pool: PooledWindows, placeholder: _Placeholder) -> None:
        super().__init__("")
        self.tower, self.connector, self.placeholder = tower, pool, placeholder

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.placeholder(op, self.connector(op, *self.tower(op, pixel_values)))


class Molmo2(VisionLanguage):
    """`model_type` molmo2, by transformers' names of weights or by the published ones."""

    text_prefix = "model.language_model"
    default_text = "molmo2_text"
    image_processor = "Molmo2ImageProcessor"
    template_placeholder = _FOR_IMAGE
    reads_image_settings: ClassVar[bool] = True
    opens_once: ClassVar[bool] = True
    looks_ahead: ClassVar[LooksAhead] = Molmo2Prompt.looks_ahead
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.transformer\.ln_f\.", "model.language_model.norm."),
        (r"^model\.transformer\.blocks\.", "model.language_model.layers."),
        (r"^model\.transformer\.", "model.language_model."),
        (r"^model\.vision_backbone\.image_vit\.transformer\.resblocks\.", f"{_TOWER}.layers."),
        (r"^model\.vision_backbone\.image_vit\.", f"{_TOWER}."),
        (r"^model\.vision_backbone\.", f"{_PROJECTOR}."),
        (r"\.attn_norm\.", ".input_layernorm."),
        (r"\.ff_norm\.", ".post_attention_layernorm."),
        (r"\.self_attn\.attn_out\.", ".self_attn.o_proj."),
        (r"\.mlp\.ff_out\.", ".mlp.down_proj."),
        (r"\.attention_norm\.", ".layer_norm1."),
        (r"\.ffn_norm\.", ".layer_norm2."),
        (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
        (r"\.feed_forward\.w([12])\.", r".mlp.fc\1."),
        (r"\.image_pooling_2d\.w([qkvo])\.", r".image_pooling_2d.\1_proj."),
        (r"\.image_projector\.w1\.", ".image_projector.gate_proj."),
        (r"\.image_projector\.w2\.", ".image_projector.down_proj."),
        (r"\.image_projector\.w3\.", ".image_projector.up_proj."),
        (r"^(model\.vision_tower)\.layers\.", r"\1.encoder.layers."),
        (r"^(model\.vision_tower\..*)\.o_proj\.", r"\1.out_proj."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("tie_word_embeddings", False)])
        is_older = config.get("vision_config") is None and config.get("vit_config") is not None
        self._tower = read_tower(sub_config(config, "vit_config" if is_older else "vision_config"))
        self._adapter = {**_ADAPTER, **sub_config(config, "adapter_config")}
        self._check_adapter()
        self._layers = self._chosen_layers()

    def _check_adapter(self) -> None:
        """Check that the connector is one that is built.

        Raises:
            UnsupportedConfigError: It is not, or of another width than tower and decoder.
        """
        adapter, heads = self._adapter, self._adapter["num_attention_heads"]
        require(adapter, [*plain_heads(heads, heads * adapter["head_dim"]), ("mlp_bias", False)])
        require(adapter, [("pooling_attention_mask", True)])
        for key, given, wanted, of in (
            ("hidden_size", adapter["hidden_size"], self._tower.tower.hidden_size, "the tower's"),
            ("text_hidden_size", adapter["text_hidden_size"], self.decoder.config.hidden_size, "the decoder's"),
        ):
            if given != wanted:
                raise UnsupportedConfigError(f"adapter_config.{key} {given}: the width is {of}, {wanted}")

    def _chosen_layers(self) -> tuple[int, ...]:
        """Return the layers that the connector looks at, counted from 0."""
        adapter, depth = self._adapter, self._tower.tower.num_layers
        given = adapter.get("vit_layers") or adapter.get("vision_feature_layer") or _LAYERS
        if not all(-depth <= layer < depth for layer in given):
            raise UnsupportedConfigError(f"adapter_config.vision_feature_layer {given!r}: the tower has {depth} layers")
        return tuple(layer % depth for layer in given)

    @property
    def _text(self) -> Raw:
        return {**TEXT_DEFAULTS, **self.text_config}

    @property
    def vocab_size(self) -> int:
        """Rows of the table of tokens: behind those that are said, those that are not."""
        return super().vocab_size + int(self._text["additional_vocab_size"])

    @property
    def image_size_px(self) -> None:
        """None: a canvas of crops."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as windows are on the canvas."""
        return

    @property
    def _pool(self) -> tuple[int, int]:
        """Height and width of a window, in patches."""
        height, width = self.stated_images.get("pooling_size") or MOLMO2.defaults["pooling_size"]
        return int(height), int(width)

    @property
    def _pools(self) -> tuple[tuple[int, int], ...]:
        """Windows of images, and of frames where these have whole ones."""
        return (self._pool, _FRAME_POOL) if self._takes_videos else (self._pool,)

    @property
    def _takes_videos(self) -> bool:
        return self.embedding is None and not any(self._tower.grid % side for side in _FRAME_POOL)

    @property
    def _overlap(self) -> Overlap:
        before, behind = self.stated_images.get("overlap_margins") or MOLMO2.defaults["overlap_margins"]
        return Overlap(self._tower.grid, int(before), int(behind), self._tower.patch_size_px)

    @property
    def _tokens_per_crop(self) -> int:
        rows, cols = (-(-self._tower.grid // side) for side in self._pool)
        return rows * cols

    def skipped(self) -> tuple[str, ...]:
        """Return what the graphs leave out, the tower's layers behind the last that is looked at among it."""
        behind = range(max(self._layers) + 1, self._tower.tower.num_layers)
        return (*super().skipped(), *(rf"{re.escape(_TOWER)}\.encoder\.layers\.{layer}\..*" for layer in behind))

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come as canvases of the tower's crops.

        Raises:
            UnsupportedConfigError: They do not.
        """
        side, patch = self._tower.image_size_px, self._tower.patch_size_px
        stated = self.stated_images.get("patch_size") or MOLMO2.defaults["patch_size"]
        if not isinstance(spec.geometry, OverlappingCrops) or (spec.geometry.crop_px, stated) != (side, patch):
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r} of patches of {stated} pixels, the vision tower "
                f"takes crops of {side} pixels and patches of {patch}: size and patch_size of the processor must be "
                "those of vision_config"
            )

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights, where projections are packed and the table is in two."""
        if self.config.get("quantization_config") is not None:
            return super().stored_weights()
        sizes = self.decoder.config
        queries, keys = sizes.num_heads * sizes.head_size, sizes.num_kv_heads * sizes.head_size
        packed = {
            "att_proj": one_after_another(q_proj=queries, k_proj=keys, v_proj=keys),
            "ff_proj": one_after_another(up_proj=sizes.intermediate_size, gate_proj=sizes.intermediate_size),
        }
        first, second = (f"{self.text_prefix}.{part}" for part in _OLDER_TABLE)
        return JoinedTables(packed, f"{self.text_prefix}.embed_tokens.weight", (first, second))

    def table(self) -> Module:
        """Return the table of tokens, with those that are never said."""
        return Embedding(self.vocab_size, self.decoder.config.hidden_size, name=f"{self.text_prefix}.embed_tokens")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector, and the token that features are added to."""
        adapter, size = self._adapter, self.decoder.config.hidden_size
        sizes = PoolSizes(
            in_size=len(self._layers) * self._tower.tower.hidden_size,
            pooled_size=adapter["hidden_size"],
            num_heads=adapter["num_attention_heads"],
            head_size=adapter["head_dim"],
            intermediate_size=adapter["intermediate_size"],
            hidden_act=adapter["hidden_act"],
            hidden_size=size,
        )
        rows = self._tokens_per_crop, self._tower.grid**2
        return _Vision(
            Molmo2Tower(self._tower, self._overlap, self._layers, dialect, _TOWER),
            PooledWindows(sizes, self._pools, rows, _PROJECTOR),
            _Placeholder(self._placeholder_id, size, f"{self.text_prefix}.embed_tokens"),
        )

    @property
    def _placeholder_id(self) -> int:
        return int(self.config.get("image_patch_id", 151_938))

    def opening(self, found: FoundProcessor) -> str:
        """Return the token that the processor writes before every conversation, unless the template does."""
        tokens = found.vocabulary.template_tokens
        return tokens.get("bos_token") or tokens.get("eos_token") or ""

    def image_prompt(self, found: FoundProcessor) -> Molmo2Prompt:
        """Return a crop and a canvas, row by row.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary, or has another id than the config says.
        """
        settings, vocabulary = found.settings, found.vocabulary
        ends_lines = _said(settings, "image_use_col_tokens", default=True)
        starts_apart = _said(settings, "use_single_crop_start_token", default=True)
        start, end, line_end = "<im_start>", "<im_end>", "<im_col>"
        crop_start = "<low_res_im_start>" if starts_apart else start
        written = (start, end, line_end, crop_start)
        ids = {token: vocabulary.id_of(token, "a token of images") for token in written}
        video = self._video_tokens(found, start, end)
        around = () if video is None else (video.start_token, video.end_token)
        ids |= {token: vocabulary.id_of(token, "a token of frames") for token in around}
        return Molmo2Prompt(
            image_token=_PATCH,
            image_token_id=found.image_token_id({"image_token_id": self._placeholder_id}, _PATCH),
            seen_ids=tuple(sorted({self._placeholder_id, *ids.values()})),
            frame_pool=_FRAME_POOL if self._takes_videos else None,
            ends_frame_lines=_said(settings, "video_use_col_tokens", default=False),
            video=video,
            tokens_per_tile=self._tokens_per_crop,
            crop_start_token=crop_start,
            start_token=start,
            end_token=end,
            line_end_token=line_end,
            ends_lines=ends_lines,
            ends_crop_lines=_said(settings, "use_single_crop_col_tokens", default=ends_lines),
            patch_px=self._tower.patch_size_px,
            pool=self._pool,
            crop_px=self._tower.image_size_px,
        )

    def grounding(self, found: FoundProcessor) -> PointGrounding:
        """Return points in tags, in thousandths of width and height."""
        return PointGrounding(scale=_POINT_SCALE)

    def with_frames(self, spec: ImageSpec, settings: Raw, source: str) -> ImageSpec:
        """Return the preprocessing with that of a video's frames, which are one crop each.

        Raises:
            UnsupportedConfigError: Frames of another size, or pooled otherwise than the model was trained with.
        """
        if not self._takes_videos or not isinstance(spec.geometry, OverlappingCrops):
            return spec
        if "max_crops" not in settings:  # else they are those of images, in files of before there were videos
            pool, size = (settings.get(key) for key in ("pooling_size", "size"))
            side = self._tower.image_size_px
            if tuple(pool or _FRAME_POOL) != _FRAME_POOL or (size is not None and edge_of(size) != side):
                raise UnsupportedConfigError(
                    f"{source}: pooling_size {pool!r} and size {size!r}; built are frames of one crop, {side} pixels, "
                    f"pooled by {list(_FRAME_POOL)}, as the model was trained"
                )
        return spec.model_copy(update={"geometry": spec.geometry.model_copy(update={"takes_videos": True})})

    def _video_tokens(self, found: FoundProcessor, start: str, end: str) -> VideoTokens | None:
        """Return what stands for a video, with what is around each frame; None: frames are images."""
        geometry, ids = found.spec.geometry, found.vocabulary.ids
        if not isinstance(geometry, OverlappingCrops) or not geometry.takes_videos or _FOR_VIDEO not in ids:
            return None
        if _said(found.settings, "use_frame_special_tokens", default=True):
            start, end = "<frame_start>", "<frame_end>"
        return VideoTokens(
            token=_FOR_VIDEO,
            token_id=ids[_FOR_VIDEO],
            num_frames=1,
            start_token=start,
            end_token=end,
            is_said_as_images=True,
        )


def _said(settings: Any, key: str, *, default: bool) -> bool:
    """Return a switch of the processor's."""
    stated = settings.get(key)
    return default if stated is None else bool(stated)
