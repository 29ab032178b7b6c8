"""CLIPSeg (arXiv 2112.10003): CLIP at the size of its own processor. Its two towers alone; no masks are drawn."""

from __future__ import annotations

from export.models.clip import Clip
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.clip import ProjectedClipTower


class ClipSeg(Clip):
    """`model_type` clipseg; images have the processor's size, and positions are resampled to it."""

    image_processor = "ViTImageProcessor"
    renames = ((r"^clip\.", ""),)
    """Published checkpoints hold the decoder as well, and the towers beside it."""
    unused = (*Clip.unused, r"decoder\..*")

    @property
    def image_size_px(self) -> int | None:
        """None: of any size."""
        return None

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and projection."""
        return ProjectedClipTower(self._vision, dialect, self.embedding_size, resamples=True)
