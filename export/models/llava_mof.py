"""Interleaved mixture of features (MMVP, Tong et al., arXiv 2401.06209, section 4.2): a LLaVA that sees by two towers.

CLIP's patches and DINOv2's, each through a connector of its own, follow one another place by place. The layout is that
of LLaVA in transformers; beside it stand `dino_tower`, as transformers keeps a DINOv2, with `dino_config` in the
config, and `dino_mm_projector`. Both towers see the same pixels, CLIP's, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.llava import LlavaPrompt
from bundle.manifest import TensorSpec
from export.config import Raw, require, sub_config
from export.connectors.projector import Projector
from export.found_processor import FoundProcessor
from export.models.llava import Llava
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.dinov2 import Dinov2Tower, read_dinov2

_TOWER, _PROJECTOR = "model.dino_tower", "model.dino_mm_projector"


class _Interleaved(Module):
    def __init__(self, first: Module, tower: Dinov2Tower, projector: Module, num_patches: int) -> None:
        super().__init__("")
        self.first, self.tower, self.projector = first, tower, projector
        self.num_patches = num_patches

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, 2 * P, D]: of each place what CLIP saw, then what DINOv2 did."""
        seen = self.first(op, pixel_values)
        rows = op.Slice(self.tower(op, pixel_values), [1], [1 + self.num_patches], [1])
        pairs = op.Concat(op.Unsqueeze(seen, [2]), op.Unsqueeze(self.projector(op, rows), [2]), axis=2)
        shape = op.Concat([0, 2 * self.num_patches], op.Shape(seen, start=2, end=3), axis=0)
        return op.Reshape(pairs, shape)


class LlavaMoF(Llava):
    """`model_type` llava_mof."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(model\.)?dino_(tower|mm_projector)\.", r"model.dino_\2."),
        (r"^(model\.dino_mm_projector)\.0\.", r"\1.linear_1."),
        (r"^(model\.dino_mm_projector)\.2\.", r"\1.linear_2."),
        *Llava.renames,
    )
    # features are read before DINOv2's last norm
    unused: ClassVar[tuple[str, ...]] = (
        *Llava.unused,
        r"model\.dino_tower\.(layernorm\..*|embeddings\.mask_token)",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("pool_out_size", None)])
        self.require_patches("features of two towers are interleaved place by place")
        raw = sub_config(config, "dino_config")
        require(raw, [("model_type", "dinov2")])
        self._dino = read_dinov2(raw)
        side, patch, grid = self._vision.image_size_px, self._dino.patch_size_px, self._vision.grid
        if side % patch or side // patch != grid:
            raise UnsupportedConfigError(
                f"dino_config.patch_size {patch}: an image of {side} pixels has {side / patch:g} patches a side, of "
                f"the first tower {grid}; features of two towers are interleaved place by place"
            )

    @property
    def tokens_per_tile(self) -> int:
        """Patches of both towers."""
        return 2 * self._vision.grid**2

    @property
    def tells_tower(self) -> bool:
        """False: half of the tokens are not those of the first tower's patches."""
        return False

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing."""
        return ()

    def vision(self, dialect: Dialect) -> Module:
        """Return both towers, each with its connector."""
        tower = Dinov2Tower(self._dino, dialect, _TOWER, pools=False, norms=False)
        return _Interleaved(super().vision(dialect), tower, self._second(), self._vision.grid**2)

    def _second(self) -> Module:
        """Return the second tower's connector, of the same kind as the first's."""
        sizes, rows = (self._dino.tower.hidden_size, self.decoder.config.hidden_size), self._vision.grid**2
        bias = bool(self.config.get("multimodal_projector_bias", True))
        if self._connector == "linear":
            return Linear(*sizes, rows=rows, bias=bias, name=_PROJECTOR)
        act = self.config.get("projector_hidden_act", "gelu")
        return Projector(*sizes, act, rows=rows, bias=bias, name=_PROJECTOR)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token repeated.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<image>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )
