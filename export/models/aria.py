"""Aria (arXiv 2410.05993): images in their own shape, queries that look at them once, and a decoder of many experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, WholePatches
from bundle.layouts.llava import LlavaPrompt
from export.config import Raw, VisionConfig, require, sub_config
from export.connectors.crossed_queries import CrossedQueries
from export.family import Family
from export.found_processor import FoundProcessor
from export.image_processors.aria import LENGTHS_PX
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.patches import Grid
from export.towers.idefics2 import Idefics2Tower
from export.towers.idefics3 import VISION_DEFAULTS
from export.vision_language import VisionLanguage

_QUERIES_OF_PATCHES = {1225: 128, 4900: 256}
_TOKENS_OF_LENGTH = {490: 128, 980: 256}


class _Vision(Module):
    def __init__(self, tower: Idefics2Tower, projector: CrossedQueries, patch_px: int) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.patch_px = patch_px

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        height, width = (op.Div(op.Shape(pixel_values, start=axis, end=axis + 1), [self.patch_px]) for axis in (2, 3))
        return self.projector(op, self.tower(op, pixel_values), Grid(height, width))


class Aria(VisionLanguage):
    """`model_type` aria.

    transformers pads images to squares and masks patches of padding, in the tower and before the queries. Here those
    are left out: an image has the patches that it fills, and the length of its longer side says which square it was.
    """

    text_prefix = "model.language_model"
    default_text = "aria_text"
    image_processor: ClassVar[str] = "AriaImageProcessor"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"\.experts\.fc1\.weight$", ".experts.gate_up_proj"),
        (r"\.experts\.fc2\.weight$", ".experts.down_proj"),
        (r"\.shared_experts\.", ".shared_expert."),
    )
    # the last layer is read before the norm behind it
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r"model\.vision_tower\.post_layernorm\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("vision_feature_layer", -1)])
        self._tower = VisionConfig.read(sub_config(config, "vision_config"), VISION_DEFAULTS)
        self._queries = _queries_of_side(config.get("projector_patch_to_query_dict") or _QUERIES_OF_PATCHES)

    @property
    def image_settings(self) -> Raw:
        """The longer length and no splitting, as transformers' processor asks for; and the tower's patch."""
        return {"max_image_size": max(LENGTHS_PX), "split_image": False, "patch_size": self._tower.patch_size_px}

    @property
    def image_size_px(self) -> None:
        """None: images keep their shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: the longer side of an image says how many."""
        return

    def check_images(self, spec: ImageSpec) -> None:
        """Check that images keep their shape, and that a longer side is one that there are queries and positions for.

        Raises:
            UnsupportedConfigError: They do not, or it is not.
        """
        geometry, patch_px = spec.geometry, self._tower.patch_size_px
        longest = geometry.longest_px if isinstance(geometry, WholePatches) else 0
        if longest // patch_px not in self._queries or longest > self._tower.image_size_px:
            known = ", ".join(str(side * patch_px) for side in self._queries)
            raise UnsupportedConfigError(
                f"the processor makes images by {geometry}; the projector has queries for longer sides of {known} "
                f"pixels, the tower positions for {self._tower.image_size_px}"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projector."""
        tower = Idefics2Tower(self._tower, dialect, "model.vision_tower", is_normed=False)
        size, name = self.decoder.config.hidden_size, "model.multi_modal_projector"
        projector = CrossedQueries(self._tower.tower, size, self._queries, dialect, name=name)
        return _Vision(tower, projector, self._tower.patch_size_px)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token once for every query.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the image token is not in the vocabulary.
        """
        longest = found.spec.tile_size_px[0]
        num_queries = self._queries.get(longest // self._tower.patch_size_px)
        counted = {int(key): num for key, num in (found.settings.get("size_conversion") or _TOKENS_OF_LENGTH).items()}
        if num_queries is None or counted.get(longest) != num_queries:
            raise UnsupportedConfigError(
                f"size_conversion {counted}, but {num_queries} queries look at an image of {longest} pixels, by "
                f"projector_patch_to_query_dict in patches of {self._tower.patch_size_px}"
            )
        token = found.token("image_token", "<|img|>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=num_queries,
        )


def _queries_of_side(stated: Mapping[Any, Any]) -> dict[int, int]:
    """Return the queries that look at a square, by patches along its side, of those by all its patches.

    Raises:
        UnsupportedConfigError: Patches that fill no square.
    """
    sides = {math.isqrt(int(patches)): (int(patches), int(queries)) for patches, queries in stated.items()}
    if any(side**2 != patches for side, (patches, _) in sides.items()):
        raise UnsupportedConfigError(f"projector_patch_to_query_dict {dict(stated)}: images are squares of patches")
    return {side: queries for side, (_, queries) in sides.items()}
