"""CLOC (arXiv 2410.02746): CLIP, and a prompter that makes the vector of a part of an image that a box names.

Neither weights nor names are published. Those here are transformers' of CLIP, and `prompter.layer` (a block of CLIP's),
`prompter.post_layernorm` and `prompter.projection`. The head that finds a box by a text is of training, and not built.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec
from export.config import VisionConfig
from export.models.clip import Clip
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import LayerNorm
from export.towers.clip import ClipTower
from export.towers.prompter import Prompter


class _Regions(Module):
    """Vectors of parts of images, and of all of an image where a box has no area."""

    def __init__(self, config: VisionConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__()
        tower = config.tower
        self.vision_model = ClipTower(config, dialect, "vision_model")
        self.post_layernorm = LayerNorm(tower.hidden_size, tower.layer_norm_eps, name="vision_model.post_layernorm")
        self.visual_projection = Linear(tower.hidden_size, embedding_size, rows=1, bias=False)
        self.prompter = Prompter(tower, embedding_size, dialect, rows=self.vision_model.embeddings.num_rows)

    def forward(self, op: OpBuilder, pixel_values: ir.Value, boxes: ir.Value) -> ir.Value:
        """Return [I, R, E] of pixels and boxes [I, R, 4].

        Both read the tokens that the layers leave, before CLIP's pooling and norm (section 3.3).
        """
        tokens = self.vision_model(op, pixel_values).states[-1]
        whole = self.visual_projection(op, self.post_layernorm(op, op.Gather(tokens, 0, axis=1)))
        has_area = op.Greater(op.Slice(boxes, [2], [3], [2]), op.Slice(boxes, [0], [1], [2]))
        return op.Where(has_area, self.prompter(op, tokens, boxes), op.Unsqueeze(whole, [1]))


class Cloc(Clip):
    """`model_type` cloc: CLIP's config and names, and a prompter."""

    regions = True
    unused = (*Clip.unused, r"box_head\..*")

    def check_images(self, spec: ImageSpec) -> None:
        """Check that all of an image is seen, so that a box of it has a place.

        Raises:
            UnsupportedConfigError: The processor cuts something off, or makes images of another size.
        """
        super().check_images(spec)
        if not spec.geometry.places_boxes:
            raise UnsupportedConfigError(
                f"the processor's images are {spec.geometry.kind}: boxes are shares of whole images, and of one that "
                "is cropped a part is not seen. Let it stretch images (do_center_crop false, both sides in size), or "
                "pad them"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower with its projection, and the prompter."""
        return _Regions(self._vision, dialect, self.embedding_size)
