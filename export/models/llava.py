"""LLaVA-1.5 (arXiv 2310.03744): a CLIP or SigLIP tower, a connector of two layers or one, and any decoder.

Of Pixtral's tower, whose images keep their shape, the same `model_type` is another model (`llava_pixtral.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.table import KnownImagePrompt
from bundle.manifest import TensorSpec
from export.config import Raw, VisionConfig, sub_config
from export.connectors.adaptive_pool import PooledProjector
from export.connectors.projector import Projector
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.llava_pixtral import LlavaPixtral
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.tower_view import tower_specs, tower_view
from export.nn.vit import tower_heads
from export.towers.clip import VISION_DEFAULTS as CLIP_DEFAULTS
from export.towers.clip import ClipTower
from export.towers.siglip import VISION_DEFAULTS as SIGLIP_DEFAULTS
from export.towers.siglip import SiglipTower
from export.vision_language import VisionLanguage

_CLIP, _SIGLIP, _PIXTRAL = "clip_vision_model", "siglip_vision_model", "pixtral"
_TOWER = "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"
_TWO_LAYERS, _LINEAR, _POOLED = "mlp2x_gelu", "linear", "pool_adapter"
"""`mm_projector_type`, by the names of LLaVA's own code. transformers' configs have none, and two layers."""


class _Vision(Module):
    def __init__(
        self, tower: Module, projector: Module, layers: tuple[int, ...], *, drops_first: bool, heads: Heads | None
    ) -> None:
        super().__init__("")
        self.tower = tower
        self.projector = projector
        self.layers = layers
        self.drops_first = drops_first
        self.heads = heads

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value | tuple[ir.Value, ...]:
        passed = self.tower(op, pixel_values)
        chosen = [passed.states[layer] for layer in self.layers]
        features = chosen[0] if len(chosen) == 1 else op.Concat(*chosen, axis=2)
        if self.drops_first:
            features = op.Slice(features, [1], [_TO_THE_END], [1])
        projected = self.projector(op, features)
        if self.heads is None:
            return projected
        return projected, *tower_view(op, passed.looks[-1], self.heads, has_class_token=self.drops_first)


_TO_THE_END = 2**31 - 1


class Llava(VisionLanguage):
    """`model_type` llava."""

    text_prefix = "model.language_model"
    image_processor = "LlavaImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
        (r"\.deepspeed_moe\.gate\.wg\.", ".router."),
        (r"\.deepspeed_moe\.experts\.deepspeed_experts\.", ".experts."),
    )
    # the connector reads hidden states of the layers: what comes after them has no effect
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.vision_tower\.post_layernorm\.(weight|bias)",
        r"model\.vision_tower\.head\..*",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        raw = sub_config(config, "vision_config")
        kind = raw.get("model_type", _CLIP)
        if kind not in (_CLIP, _SIGLIP):
            raise UnsupportedConfigError(
                f"vision_config.model_type {kind!r}: the towers built are {_CLIP}, {_SIGLIP} and, of a plain llava, "
                f"{_PIXTRAL}"
            )
        self._is_clip = kind == _CLIP
        self._vision = VisionConfig.read(raw, CLIP_DEFAULTS if self._is_clip else SIGLIP_DEFAULTS)
        self._strategy = config.get("vision_feature_select_strategy", "default")
        if self._strategy not in ("default", "full"):
            raise UnsupportedConfigError(f"vision_feature_select_strategy {self._strategy!r}; known: default, full")
        self._layers = self._feature_layers()
        self._connector = config.get("mm_projector_type", _TWO_LAYERS)
        if self._connector not in (_TWO_LAYERS, _LINEAR, _POOLED):
            raise UnsupportedConfigError(
                f"mm_projector_type {self._connector!r}: the connectors built are {_TWO_LAYERS}, {_LINEAR} and "
                f"{_POOLED}"
            )
        self._pooled_side = self._read_pool() if self._connector == _POOLED else None

    def _read_pool(self) -> int:
        """Return how many tokens a side are left of an image."""
        self.require_patches("means are over patches alone")
        side, grid = self.config.get("pool_out_size"), self._vision.grid
        if not isinstance(side, int) or not 1 <= side <= grid:
            raise UnsupportedConfigError(
                f"pool_out_size {side!r}: {_POOLED} wants 1 to {grid} tokens a side, as an image has {grid} patches"
            )
        return side

    def _feature_layers(self) -> tuple[int, ...]:
        """Return which hidden states feed the connector; 0 is the input of the first layer."""
        stated = self.config.get("vision_feature_layer", -2)
        depth = self._vision.tower.num_layers
        listed = [stated] if isinstance(stated, int) else list(stated)
        if not listed or any(not -depth - 1 <= layer <= depth for layer in listed):
            raise UnsupportedConfigError(
                f"vision_feature_layer {stated!r}: the tower has hidden states {-depth - 1} to {depth}"
            )
        return tuple(layer % (depth + 1) for layer in listed)

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Patches, plus CLIP's class token, less the one that "default" drops; or the means of them."""
        if self._pooled_side is not None:
            return self._pooled_side**2
        return int(self._vision.grid**2 + self._is_clip - (self._strategy == "default"))

    def skipped(self) -> tuple[str, ...]:
        """Return the unused keys, with the tower's layers above the deepest one read."""
        above = range(max(self._layers), self._vision.tower.num_layers)
        return (*super().skipped(), *(rf"model\.vision_tower\.encoder\.layers\.{layer}\..*" for layer in above))

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, choice of hidden states, and connector."""
        kind = ClipTower if self._is_clip else SiglipTower
        tower = kind(self._vision, dialect, _TOWER, num_layers=max(self._layers))
        drops_first = self._strategy == "default"
        heads = tower_heads(self._vision.tower) if self.tells_tower else None
        return _Vision(tower, self.connector(dialect), self._layers, drops_first=drops_first, heads=heads)

    def connector(self, dialect: Dialect) -> Module:
        """Return what makes features of chosen hidden states; `projector`, unless a model wants a dialect for it."""
        return self.projector()

    def projector(self) -> Module:
        """Return the connector: LLaVA-1.5's two layers, or one matrix, as LLaVA had before (arXiv 2304.08485, 4.1)."""
        sizes = self._vision.tower.hidden_size * len(self._layers), self.decoder.config.hidden_size
        bias = bool(self.config.get("multimodal_projector_bias", True))
        if self._connector == _LINEAR:
            return Linear(*sizes, rows=self.tokens_per_tile, bias=bias, name=PROJECTOR)
        act = self.config.get("projector_hidden_act", "gelu")
        layers = Projector(*sizes, act, rows=self.tokens_per_tile, bias=bias, name=PROJECTOR)
        return layers if self._pooled_side is None else PooledProjector(self._vision.grid, self._pooled_side, layers)

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return what tells of the attention in the deepest layer that is read."""
        return tower_specs(self.tokens_per_tile, tower_heads(self._vision.tower).size) if self.tells_tower else ()

    @property
    def reads_patches(self) -> bool:
        """Whether what the decoder reads of a layer are its patches, all of them and no others."""
        return bool(self._is_clip == (self._strategy == "default"))

    def require_patches(self, reason: str) -> None:
        """Refuse a choice of features that are not all patches and no others.

        Raises:
            UnsupportedConfigError: It is one.
        """
        if not self.reads_patches:
            raise UnsupportedConfigError(
                f"vision_feature_select_strategy {self._strategy!r}: {reason}; that is 'default' of a CLIP tower and "
                "'full' of a SigLIP one"
            )

    @property
    def tells_tower(self) -> bool:
        """Whether the graph tells of the attention to what it gives."""
        return max(self._layers) > 0 and self.reads_patches and self._pooled_side is None

    def image_prompt(self, found: FoundProcessor) -> KnownImagePrompt:
        """Return the image token repeated.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        patch = int(found.settings.get("patch_size") or self._vision.patch_size_px)
        strategy = found.settings.get("vision_feature_select_strategy") or self._strategy
        height, width = found.spec.tile_size_px
        patches = (height // patch) * (width // patch)
        kept = {"default": patches + self._is_clip - 1, "full": patches + self._is_clip}
        if strategy not in kept:
            raise UnsupportedConfigError(
                f"vision_feature_select_strategy {strategy!r} is not supported; known are {', '.join(kept)}"
            )
        token = found.token("image_token", "<image>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=kept[strategy] if self._pooled_side is None else self.tokens_per_tile,
        )


def open_llava(config: Raw) -> VisionLanguage:
    """Return the LLaVA of a config by its tower: images of one size, or of any shape where that is Pixtral's."""
    vision = config.get("vision_config")
    kind = vision.get("model_type") if isinstance(vision, Mapping) else None
    return LlavaPixtral(config) if kind == _PIXTRAL else Llava(config)
