"""FastV: behind the first layers, image tokens that the last token hardly looks at are dropped.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764). The score of an image token is
the attention of the prompt's last token in the layer before the cut, the mean over heads; the best stay, over all of a
prompt's images together. Everything is dropped at the first cut (the paper's K), and positions stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.visual_tokens.inside.attention import last_row
from quant.visual_tokens.inside.ranking import best_images, num_kept
from runtime.feeds import Int64
from runtime.segmented_prompt import Cut


@dataclass(frozen=True)
class FastV:
    """Keeps a share of the image tokens behind the first cut.

    Attributes:
        keep: The share, in (0, 1].
    """

    keep: float

    def __call__(self, cut: Cut) -> Int64:
        """Return the image tokens that go on."""
        if cut.number:
            return cut.image_rows
        return best_images(cut, last_row(cut), num_kept(cut.num_image_tokens, self.keep))
