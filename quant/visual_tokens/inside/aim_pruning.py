"""AIM's second half: image tokens are pruned step by step through the layers, by how much everything looks at them.

Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning" (arXiv 2412.03248). The tokens
are nodes and attention of the layer before the cut is the weight of edges, the mean over heads of a softmax at
temperature 0.1; a token's importance is its PageRank after five rounds from equal ranks. Text is never pruned. We read
attention causally, as the layer does. The paper prunes at each of 14 layers by a fixed slope, until nothing is left;
here there are as many steps as cuts, of equal size, and `keep` is what is left behind the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.visual_tokens.inside.attention import Float32, all_rows
from quant.visual_tokens.inside.ranking import best_images, num_kept
from runtime.feeds import Int64
from runtime.segmented_prompt import Cut

_TEMPERATURE = 0.1
_ROUNDS = 5


@dataclass(frozen=True)
class AimPruning:
    """Keeps fewer image tokens behind every cut.

    Attributes:
        keep: The share that is left behind the last one, in (0, 1].
    """

    keep: float

    def __call__(self, cut: Cut) -> Int64:
        """Return the image tokens that go on."""
        share = 1 - (1 - self.keep) * (cut.number + 1) / cut.num_cuts
        return best_images(cut, page_rank(all_rows(cut, _TEMPERATURE)), num_kept(cut.num_image_tokens, share))


def page_rank(edges: Float32) -> Float32:
    """Return [L] the ranks after some rounds: each token hands its rank to those that it looks at.

    Args:
        edges: [L, L], of each row the shares of what it looks at.
    """
    ranks = np.full(len(edges), 1 / len(edges), np.float32)
    for _ in range(_ROUNDS):
        ranks = ranks @ edges
    return ranks
