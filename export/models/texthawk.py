"""TextHawk and TextHawk2 (arXiv 2404.09204, 2410.05261): a SigLIP tower over tiles, their resampler, and a decoder.

Neither code nor weights are published. What is read is a checkpoint in LLaVA's layout whose config says `model_type`
texthawk and holds `resampler_config`; `vision_feature_layer` is the route of its layers through the tower's depths
(multi-level cross-attention), the last stage first. LoRA is to be merged, as into any decoder. TextHawk's detection
head, which TextHawk2 dropped for coordinates in words, is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import GridCanvas, ImageSpec
from bundle.layouts.texthawk import TextHawkPrompt
from bundle.manifest import TensorSpec
from export.config import Raw, require
from export.connectors.resa import ReSA, ResamplerConfig
from export.found_processor import FoundProcessor
from export.models.llava import PROJECTOR, Llava
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.siglip import SiglipTower


class _Vision(Module):
    """A canvas [I, 3, height, width] of whole tiles, which the tower sees one by one."""

    def __init__(self, tower: SiglipTower, resampler: ReSA, layers: tuple[int, ...], tile_px: int) -> None:
        super().__init__("")
        self.tower, self.resampler = tower, resampler
        self.layers, self.tile_px = layers, tile_px

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        tile = self.tile_px
        rows, cols = (op.Div(op.Shape(pixel_values, start=axis, end=axis + 1), [tile]) for axis in (2, 3))
        squares = op.Reshape(pixel_values, op.Concat([-1, 3], rows, [tile], cols, [tile], axis=0))
        tiles = op.Reshape(op.Transpose(squares, perm=[0, 2, 4, 1, 3, 5]), [-1, 3, tile, tile])
        states = self.tower(op, tiles).states
        return self.resampler(op, rows, cols, *(states[layer] for layer in self.layers))


class TextHawk(Llava):
    """`model_type` texthawk."""

    image_processor = "TextHawkImageProcessor"

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        if self._is_clip or not self.reads_patches:
            raise UnsupportedConfigError(
                f"vision_config.model_type {config['vision_config'].get('model_type')!r}, "
                f"vision_feature_select_strategy {self._strategy!r}: TextHawk reads all patches of a SigLIP tower, "
                "siglip_vision_model with 'full'"
            )
        require(config, [("mm_projector_type", None), ("detection_head", None)])
        self._resampler = ResamplerConfig.read(config.get("resampler_config") or {}, self._vision.grid)

    @property
    def image_size_px(self) -> None:  # type: ignore[override]
        """None: a grid of tiles."""
        return

    @property
    def tokens_per_tile(self) -> None:  # type: ignore[override]
        """None: as many as tiles are in the grid."""
        return

    @property
    def tells_tower(self) -> bool:
        """False: tokens are not those of the tower's patches."""
        return False

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing."""
        return ()

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in grids of the tower's tiles.

        Raises:
            UnsupportedConfigError: They do not.
        """
        side = self._vision.image_size_px
        if not isinstance(spec.geometry, GridCanvas) or spec.geometry.tile_px != side:
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the vision tower takes grids of {side} pixels' "
                "tiles: image_processor_type must be TextHawkImageProcessor, and its size vision_config.image_size"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and resampler."""
        tower = SiglipTower(self._vision, dialect, "model.vision_tower", num_layers=max(self._layers))
        resampler = ReSA(
            self._resampler,
            self._vision.grid,
            in_size=self._vision.tower.hidden_size,
            out_size=self.decoder.config.hidden_size,
            num_layers=len(self._layers),
            dialect=dialect,
            name=PROJECTOR,
        )
        return _Vision(tower, resampler, self._layers, self._vision.image_size_px)

    def image_prompt(self, found: FoundProcessor) -> TextHawkPrompt:
        """Return the image token repeated, of the whole and of the grid.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<image>")
        return TextHawkPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self._resampler.tokens_per_tile(self._vision.grid),
            tile_px=self._vision.image_size_px,
        )
