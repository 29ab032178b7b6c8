"""DyVTE: a small network reads the text's hidden states and tells when no image token is needed any more.

Wu et al., "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings"
(arXiv 2411.19628). Before each cut's layer a router of two layers reads [mean of text, last text]; where it says so,
all image tokens leave the rest of the decoder. Routers belong to one checkpoint and come with its bundle.

`keep` is the share of the decoder's layers that see the images at least: no exit before that. With 1 there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bundle.visual_exit import Router, features_of
from runtime.feeds import Int64
from runtime.segmented_prompt import Cut


@dataclass(frozen=True)
class DyVTE:
    """Drops all image tokens at the first cut whose router says that they can leave.

    Attributes:
        keep: Share of the layers that see them at least, in (0, 1].
        routers: By the layer that they stand before; where there is none, nothing leaves.
    """

    keep: float
    routers: Mapping[int, Router]

    def __call__(self, cut: Cut) -> Int64:
        """Return the image tokens that go on: all or none."""
        router = self.routers.get(cut.layer)
        if router is None or cut.layer < self.keep * cut.num_layers:
            return cut.image_rows
        leaves = router.logit(features_of(cut.hidden[~cut.is_image])) > 0
        return np.empty(0, np.int64) if leaves else cut.image_rows
