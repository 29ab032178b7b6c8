"""MobileCLIP S0, S1 and S2 (arXiv 2311.17049) as apple/ml-mobileclip keeps them; of S0 nothing else is published.

A checkpoint is the authors' `configs/mobileclip_s0.json` as `config.json`, with `"model_type": "mobileclip"` in it;
their `mobileclip_s0.pt`, or its weights in safetensors; and the tokenizer of CLIP. Its image tower is timm's FastViT
under other names, which are turned into timm's. As of open_clip's checkpoints, texts are not repaired before they are
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, ImageSpec
from export.config import Raw, sub_config
from export.dual_encoder import DualEncoder, TextTower
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.residual_block import Projection
from export.towers.fastvit import FastViTTower
from export.towers.fastvit_config import FastViTConfig
from export.towers.mobileclip import read_fastvit
from export.towers.mobileclip_text import MobileClipText, MobileClipTextConfig

_TOWERS: Mapping[str, str] = {f"mci{number}": f"fastvit_mci{number}" for number in range(3)}
"""The authors' names of image towers, and timm's."""
_IMAGES, _TEXTS = "image_encoder", "text_encoder"
_NETWORK = rf"^{_IMAGES}\.model\.network\."
_MOST_SCALE = 100.0


class _Vision(Module):
    """Pixels to the vector of an image: the mean of all places, and a matrix."""

    def __init__(self, config: FastViTConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__(_IMAGES)
        self.tower = FastViTTower(config, dialect, "trunk")
        self.projection = Projection(config.hidden_size, embedding_size, "head.proj")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, op.ReduceMean(self.tower(op, pixel_values), [1], keepdims=0))


class MobileClip(DualEncoder):
    """`model_type` mobileclip."""

    scalars = ("logit_scale",)
    pad_token_id = 0
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *((rf"{_NETWORK}{at}\.", f"{_IMAGES}.trunk.stages.{stage}.blocks.") for stage, at in enumerate((0, 2, 4, 7))),
        *(
            (rf"{_NETWORK}{at}\.proj\.", f"{_IMAGES}.trunk.stages.{stage}.downsample.proj.")
            for stage, at in enumerate((1, 3, 5), 1)
        ),
        (rf"{_NETWORK}6\.pe\.", f"{_IMAGES}.trunk.stages.3.pos_emb.pos_enc."),
        (rf"^{_IMAGES}\.model\.patch_embed\.", f"{_IMAGES}.trunk.stem."),
        (rf"^{_IMAGES}\.model\.conv_exp\.", f"{_IMAGES}.trunk.final_conv."),
        (rf"^{_IMAGES}\.model\.head\.", f"{_IMAGES}.head."),
        (r"\.rbr_conv\.", ".conv_kxk."),
        (r"\.rbr_scale\.", ".conv_scale."),
        (r"\.rbr_skip\.", ".identity."),
        (r"\.lkb_origin\.", ".large_conv."),
        (r"\.convffn\.", ".mlp."),
        (r"\.se\.reduce\.", ".se.fc1."),
        (r"\.se\.expand\.", ".se.fc2."),
        (r"\.layer_scale(_[12])?$", r".layer_scale\1.gamma"),
    )
    unused = (*DualEncoder.unused, r".*\.num_batches_tracked")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        images = sub_config(config, "image_cfg")
        if (name := images.get("model_name")) not in _TOWERS:
            raise UnsupportedConfigError(
                f"image_cfg.model_name is {name!r}; built are {', '.join(_TOWERS)}. Of MobileCLIP-B export open_clip's "
                "checkpoint (apple/MobileCLIP-B-OpenCLIP)"
            )
        self._vision = read_fastvit({"timm_model_name": _TOWERS[str(name)], "image_size": images.get("image_size")})
        self._text = MobileClipTextConfig.read(sub_config(config, "text_cfg"))
        self._embedding_size = int(config["embed_dim"])

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def text_tower(self) -> TextTower:
        """What callers must know of the text side."""
        return TextTower(self._embedding_size, self._text.vocab_size, self._text.num_tokens, scoring="softmax")

    def scores(self, scalar: Callable[[str], float]) -> tuple[float, float]:
        """Return what cosines are multiplied by, at most 100, and 0."""
        return min(math.exp(scalar("logit_scale")), _MOST_SCALE), 0.0

    def own_image_spec(self) -> ImageSpec:
        """Return the authors' preprocessing, which is in no file: a crop, and colours as they are."""
        side = self.image_size_px
        return ImageSpec(
            geometry=Cropped(shortest_edge_px=side, height_px=side, width_px=side, rounds_half_to_even=True),
            resample="bilinear",
            rescale_factor=1 / 255,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return _Vision(self._vision, dialect, self._embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return MobileClipText(self._text, dialect, self._embedding_size, _TEXTS)
