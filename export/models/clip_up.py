"""CLIP-UP (Wang et al., arXiv 2502.00965): CLIP whose feed-forwards are experts in some layers of either tower.

Neither weights nor names are published. Those here are transformers' of CLIP, whose `mlp` in such a layer holds
`router.weight` [experts, D] and, for each expert, `experts.{e}.fc1` and `fc2` in the place of its own: a checkpoint
that was upcycled is the dense one with its matrices copied to each.
"""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.models.clip import Clip

_TOWERS = ("vision_config", "text_config")


class ClipUp(Clip):
    """`model_type` clip_up: CLIP's config, and `moe` in that of one tower or of both.

    `moe` has `layers`, `num_experts`, `num_experts_per_tok` and `norm_topk_prob`: which layers have experts, how many,
    how many of them a patch or word meets, and whether these count by shares that sum to 1.
    """

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        if not any((config.get(name) or {}).get("moe") for name in _TOWERS):
            raise UnsupportedConfigError(
                "config.json: no tower has moe, which says where experts are; without any it is model_type clip"
            )
