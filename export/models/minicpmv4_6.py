"""MiniCPM-V 4.6: a SigLIP tower that makes squares of patches one on its way, slices, and Qwen3.5's decoder."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, Sliced
from bundle.layouts.minicpmv import MiniCPMVPrompt
from export.config import Raw, require, sub_config
from export.connectors.patch_merger import merged_squares
from export.family import Family
from export.found_processor import FoundProcessor
from export.image_processors.minicpmv4_6 import PATCHES_A_TOKEN
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.nn.patches import Grid, usual_patches
from export.towers.minicpmv4_6 import MiniCPMVTower, MiniCPMVTowerConfig
from export.vision_language import VisionLanguage

_DEFAULTS: Raw = {
    "insert_layer_id": 6,
    "downsample_mode": "16x",
    "merge_kernel_size": (2, 2),
    "merger_times": 1,
    "drop_vision_last_layer": False,
    "tie_word_embeddings": False,
}
_SIDE = 2
_EPS = 1e-6
_TEXTS = ("image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end")
_DEFAULT_TEXTS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")


class _Merger(Module):
    """Squares of vectors to the decoder's width; the checkpoint keeps a list of one."""

    def __init__(self, size: int, out_size: int, *, rows: int) -> None:
        super().__init__("model.merger.mlp.0")
        wide = size * _SIDE**2
        self.pre_norm = LayerNorm(wide, _EPS)
        self.linear_1 = Linear(wide, wide, rows=rows)
        self.linear_2 = Linear(wide, out_size, rows=rows)
        self.size = size

    def forward(self, op: OpBuilder, x: ir.Value, grid: Grid) -> ir.Value:
        squares = self.pre_norm(op, merged_squares(op, x, grid, self.size, _SIDE))
        return self.linear_2(op, op.Gelu(self.linear_1(op, squares)))


class MiniCPMV46(VisionLanguage):
    """`model_type` minicpmv4_6."""

    text_prefix = "model.language_model"
    default_text = "qwen3_5_text"
    image_processor = "MiniCPMV4_6ImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"^(model\.vision_tower\.)encoder\.", r"\1"),)
    reads_image_settings: ClassVar[bool] = True  # whether images are numbered
    # what predicts several tokens at once; transformers leaves it out as well
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"mtp\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        full = self.config
        sides = {"merge_kernel_size": list(full["merge_kernel_size"])}
        require(
            {**full, **sides},
            [("merge_kernel_size", [_SIDE, _SIDE]), ("merger_times", 1), ("drop_vision_last_layer", False)],
        )
        if full["downsample_mode"] not in PATCHES_A_TOKEN:
            raise UnsupportedConfigError(
                f"config.json: downsample_mode {full['downsample_mode']!r}; built are {', '.join(PATCHES_A_TOKEN)}"
            )
        self._side = PATCHES_A_TOKEN[full["downsample_mode"]]
        self._tower = MiniCPMVTowerConfig.read(
            sub_config(full, "vision_config"), int(full["insert_layer_id"]), merges=self._side > _SIDE
        )

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, and what makes squares one where they stay patches."""
        merger = () if self._tower.merged_behind is not None else (r"model\.vision_tower\.vit_merger\..*",)
        return (*super().skipped(), *merger)

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the config ties them."""
        return super().stand_ins() if self.config["tie_word_embeddings"] else {}

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
        return self._tower.patch_px * self._side

    @property
    def _rows(self) -> int:
        """Tokens of a usual image."""
        return usual_patches(self._tower.patch_px) // self._side**2

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images come in whole squares of patches.

        Raises:
            UnsupportedConfigError: They do not.
        """
        if not isinstance(spec.geometry, Sliced) or spec.geometry.step_px != self._unit_px:
            raise UnsupportedConfigError(
                f"the processor makes images by {spec.geometry!r}, the vision tower takes squares of {self._unit_px} "
                "pixels: patch_size and downsample_mode of the processor must be vision_config.patch_size and "
                "downsample_mode of the model"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and merger."""
        tower, size = MiniCPMVTower(self._tower, dialect, "model.vision_tower"), self._tower.vision.tower.hidden_size
        merger = _Merger(size, self.decoder.config.hidden_size, rows=self._rows)
        return Chain(tower, merger)

    def image_prompt(self, found: FoundProcessor) -> MiniCPMVPrompt:
        """Return the number of an image, all of it, and its slices.

        Raises:
            UnsupportedConfigError: A token is not in the vocabulary.
        """
        token, vocabulary = found.token("image_token", "<|image_pad|>"), found.vocabulary
        texts = [found.token(f"{name}_token", text) for name, text in zip(_TEXTS, _DEFAULT_TEXTS, strict=True)]
        for text in texts:
            vocabulary.id_of(text, "a token around images")
        start, end, slice_start, slice_end, *numbered = texts
        is_numbered = found.settings.get("use_image_id", self.stated_images.get("use_image_id", True))
        number_start, number_end = numbered if is_numbered else ("", "")
        return MiniCPMVPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(found.spec.tile_size_px[0] // self._unit_px) ** 2,
            start_token=start,
            end_token=end,
            slice_start=slice_start,
            slice_end=slice_end,
            number_start=number_start,
            number_end=number_end,
            step_px=self._unit_px,
        )
