"""FastViT as MobileCLIP's image tower (arXiv 2311.17049, section 4.2), as open_clip takes it by timm's name."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.fastvit import FastViTTower
from export.towers.fastvit_config import FASTVITS, FastViTConfig


def read_fastvit(raw: Raw) -> FastViTConfig:
    """Return the tower that `vision_cfg` names, with the branches of training, which open_clip keeps.

    Raises:
        UnsupportedConfigError: Its last stage does not stand for whole squares of the image.
    """
    config, side = FASTVITS[raw["timm_model_name"]], raw.get("image_size", 224)
    patch = config.patch_size_px
    if not isinstance(side, int) or side <= 0 or side % patch:
        raise UnsupportedConfigError(
            f"vision_cfg.image_size is {side!r}; {raw['timm_model_name']} takes multiples of {patch}"
        )
    return replace(config, has_branches=True, image_size_px=side)


class MobileClip(Module):
    """Pixels to the vector of an image: the mean of all places, and a matrix.

    Args:
        config: The tower.
        raw: `vision_cfg`, which says what stands behind it.
        dialect: How attention is written.
        embedding_size: E.

    Raises:
        UnsupportedConfigError: A pooling or a projection that is not built.
    """

    def __init__(self, config: FastViTConfig, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("visual")
        pool, kind = raw.get("timm_pool", "avg"), raw.get("timm_proj", "linear")
        if pool != "avg" or kind:
            raise UnsupportedConfigError(
                f"vision_cfg.timm_pool {pool!r} with timm_proj {kind!r}; of {raw['timm_model_name']} built is 'avg' "
                "with null"
            )
        self.tower = FastViTTower(config, dialect, "trunk")
        self.head = Linear(config.hidden_size, embedding_size, rows=1, name="trunk.head.fc")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        places = self.tower(op, pixel_values)
        return self.head(op, op.ReduceMean(places, [1], keepdims=0))
