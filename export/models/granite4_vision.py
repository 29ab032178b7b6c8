"""Granite 4 Vision (IBM, 2026): LLaVA-NeXT's tiles, Q-Formers in windows, and a Granite that takes them by layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava_next import LlavaNextPrompt
from export.config import Raw, sub_config
from export.connectors.qformer import QFormerConfig
from export.connectors.windowed_qformer import WindowedQFormer, Windows
from export.decoders.granite import Granite
from export.decoders.qwen3_vl_text import DEEP_LAYERS
from export.found_processor import FoundProcessor
from export.models.llava_next import LlavaNext
from export.nn.dialect import Dialect
from export.nn.module import Module, ModuleList, Weight
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, one_after_another
from export.towers.clip import ClipTower
from export.towers.siglip import SiglipTower

_CORNERS, _HYBRID = 4, "granitemoehybrid"
_HEAD_SIZE = 64
"""Of the Q-Formers, whatever their config says (transformers, `Granite4VisionConfig`)."""
_TARGETS = (12, 15, 18, 21)
_QFORMER: Raw = {"num_hidden_layers": 1, "intermediate_size": 3072, "cross_attention_frequency": 1}
"""What transformers takes where the config has none."""
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class _Way:
    """From a layer of the tower through a Q-Former of its own to a layer of the decoder.

    Attributes:
        seen: Hidden state of the tower, 0 before its first layer.
        target: Layer of the decoder, before which features are added.
        corner: As `WindowedQFormer`.
    """

    seen: int
    target: int
    corner: int | None


class _Vision(Module):
    """Tower, a Q-Former for each way, and the row that ends a line, as wide as all of them.

    Args:
        tower: Of images.
        projectors: Of the layers, then of the corners, in order of `ways`.
        ways: Theirs.
        size: D.
        factor: What the decoder multiplies embeddings by.
        drops_first: The tower's first row is a class token.
    """

    def __init__(
        self,
        tower: Module,
        projectors: Sequence[WindowedQFormer],
        ways: Sequence[_Way],
        size: int,
        factor: float,
        *,
        drops_first: bool,
    ) -> None:
        super().__init__("model")
        self.vision_tower = tower
        self.layerwise_projectors = ModuleList(list(projectors[:-_CORNERS]))
        self.spatial_projectors = ModuleList(list(projectors[-_CORNERS:]))
        self.image_newline = Weight(size)
        self.ways, self.size, self.factor, self.drops_first = ways, size, factor, drops_first

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, P + 1, (1 + deep) * D]: what embeddings become, then features of layers in their order."""
        passed = self.vision_tower(op, pixel_values)
        found = {}
        for way, projector in zip(self.ways, [*self.layerwise_projectors, *self.spatial_projectors], strict=True):
            seen = passed.states[way.seen]
            seen = op.Slice(seen, [1], [_TO_THE_END], [1]) if self.drops_first else seen
            found[way.target] = self._ended(op, projector(op, seen))
        return op.Concat(self._embeddings(op, found), *(found[target] for target in deep_of(self.ways)), axis=2)

    def _ended(self, op: OpBuilder, features: ir.Value) -> ir.Value:
        """Return [I, P + 1, D] from [I, P, D]."""
        images = op.Shape(features, start=0, end=1)
        ends = op.Expand(self.image_newline, op.Concat(images, [1, self.size], axis=0))
        return op.Concat(features, ends, axis=1)

    def _embeddings(self, op: OpBuilder, found: Mapping[int, ir.Value]) -> ir.Value:
        """Return [I, P + 1, D]: nothing, or what the first layer takes, which the decoder multiplies."""
        if 0 in found:
            return op.Mul(found[0], 1 / self.factor)
        return op.Expand([0.0], op.Shape(next(iter(found.values()))))


def _dense(text: Raw) -> Raw:
    """Return a text config as Granite's, where it is a hybrid's of which all layers are attention (Granite 4.0 Micro).

    Raises:
        UnsupportedConfigError: It has recurrent layers, experts, or no rotary embedding.
    """
    if text["model_type"] != _HYBRID:
        return text
    kinds = set(text.get("layer_types") or text.get("layers_block_type") or ["mamba"])
    stated = {name: text.get(name) for name in ("num_local_experts", "position_embedding_type")}
    if kinds - {"attention", "full_attention"} or stated != {"num_local_experts": 0, "position_embedding_type": "rope"}:
        raise UnsupportedConfigError(
            f"text_config.model_type {_HYBRID} with layers of the kinds {', '.join(sorted(kinds))} and {stated}: built "
            "are layers of attention alone, 0 experts and rope; Mamba2 is not"
        )
    return {**text, "model_type": "granite4_vision_text", "intermediate_size": text["shared_intermediate_size"]}


def deep_of(ways: Sequence[_Way]) -> list[int]:
    """Return the decoder's layers that take features, in order, but for the first, whose are its embeddings."""
    return sorted(way.target for way in ways if way.target)


class Granite4Vision(LlavaNext):
    """`model_type` granite4_vision.

    Images take no part in the decoder but by features that are added before some of its layers: before the first they
    are embeddings, before others they are added behind the layer that comes before.
    """

    default_text = "granite4_vision_text"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *LlavaNext.renames,
        (r"^(layerwise_projectors|spatial_projectors)\.", r"model.\1."),
        (r"^(model\.language_model\..*)\.shared_mlp\.output_linear\.", r"\1.mlp.down_proj."),
        (r"^(model\.language_model\..*)\.shared_mlp\.", r"\1.mlp."),
    )

    def __init__(self, config: Raw) -> None:
        listed = [layer for layer, _ in config.get("deepstack_layer_map") or []]
        seen = [*listed, config.get("spatial_vision_layer", -1)]
        super().__init__({**config, "vision_feature_layer": seen})
        self._windows = self._read_windows()
        self._ways = self._read_ways()
        if (last := max(way.target for way in self._ways)) >= self.decoder.config.num_layers:
            raise UnsupportedConfigError(
                f"features of images go before layer {last} of the decoder by deepstack_layer_map and "
                f"spatial_target_layers, and the last of its {self.decoder.config.num_layers} is "
                f"{self.decoder.config.num_layers - 1}: name layers that it has"
            )

    def _read_windows(self) -> Windows:
        """Return how tiles are cut.

        Raises:
            UnsupportedConfigError: Queries are no quarter of the patches, or windows do not fill a tile.
        """
        stated, grid = self.config.get("downsample_rate"), self._vision.grid
        parts = [int(part) for part in str(stated).split("/") if part.isdigit()]
        if len(parts) != 2 or parts[1] != 2 * parts[0] or grid % parts[1]:
            raise UnsupportedConfigError(
                f"downsample_rate {stated!r}: built are n/2n, such as 4/8, with 2n dividing the {grid} patches of a "
                "tile's side; corners of squares of four are one in two of each side"
            )
        return Windows(grid, parts[1], parts[0])

    def _read_ways(self) -> tuple[_Way, ...]:
        """Return what leads from the tower to the decoder.

        Raises:
            UnsupportedConfigError: Two lead to one layer, or there are not as many corners as a square has.
        """
        mapped = self.config.get("deepstack_layer_map") or []
        stated = self.config.get("spatial_target_layers")
        corners = list(_TARGETS if stated is None else stated)
        targets = [int(target) for _, target in mapped] + corners
        if len(corners) != _CORNERS or len(set(targets)) != len(targets) or min(targets) < 0:
            raise UnsupportedConfigError(
                f"deepstack_layer_map {mapped} and spatial_target_layers {corners}: wanted are layers of the decoder, "
                f"each once, {_CORNERS} of them for the corners of squares"
            )
        kinds = [*(None for _ in mapped), *range(_CORNERS)]
        seen = [*self._layers[:-1], *(self._layers[-1] for _ in corners)]
        return tuple(_Way(*way) for way in zip(seen, targets, kinds, strict=True))

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, with the layers behind which features are added."""
        return {**_dense(super().text_config), DEEP_LAYERS: [target - 1 for target in deep_of(self._ways)]}

    @property
    def tokens_per_tile(self) -> int:
        """A quarter of a tile's patches."""
        return self._windows.tokens_side**2

    @property
    def feature_size(self) -> int:
        """Width of a row of features: D for embeddings, and D for each further layer that takes some."""
        return int(self.decoder.config.hidden_size * (1 + len(deep_of(self._ways))))

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights: a hybrid's feed-forward has two matrices in one."""
        if self.config.get("quantization_config") is not None:
            return super().stored_weights()
        inner = self.decoder.config.intermediate_size
        return PackedProjections({"mlp.input_linear": one_after_another(gate_proj=inner, up_proj=inner)})

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, Q-Formers and the row that ends a line."""
        kind = ClipTower if self._is_clip else SiglipTower
        tower = kind(self._vision, dialect, "vision_tower", num_layers=max(self._layers))
        size, qformer = self.decoder.config.hidden_size, self._qformer()
        projectors = [WindowedQFormer(qformer, self._windows, size, way.corner, dialect) for way in self._ways]
        factor = self.decoder.embedding_factor if isinstance(self.decoder, Granite) else 1.0
        drops_first = self._strategy == "default"
        return _Vision(tower, projectors, self._ways, size, factor, drops_first=drops_first)

    def _qformer(self) -> QFormerConfig:
        width = self._vision.tower.hidden_size
        stated = sub_config(self.config, "qformer_config") if self.config.get("qformer_config") else _QFORMER
        sizes = {"hidden_size": width, "num_attention_heads": width // _HEAD_SIZE}
        return QFormerConfig.read({**stated, **sizes}, width, self.tokens_per_tile)

    def image_prompt(self, found: FoundProcessor) -> LlavaNextPrompt:
        """Return the whole image, and lines of all tiles.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the token is not in the vocabulary.
        """
        rate = found.settings.get("downsample_rate", self.config["downsample_rate"])
        if rate != self.config["downsample_rate"]:
            raise UnsupportedConfigError(
                f"processor_config.json: downsample_rate {rate!r}, and config.json has "
                f"{self.config['downsample_rate']!r}; correct the one that the model was not trained with"
            )
        plain = super().image_prompt(found)
        return plain.model_copy(update={"tokens_per_tile": self.tokens_per_tile})
