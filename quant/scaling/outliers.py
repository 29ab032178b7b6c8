"""Loud channels planted in a model without changing what it computes: what quantizers meet in large trained models.

Small models, trained on little, and random weights have channels of about equal size, which flatters every quantizer.
Here a few channels of each normalization are made 20 to 50 times louder and the weights that read them as much
smaller, so that the function stays and its activations get the shape known from language models (Dettmers et al.,
arXiv 2208.07339).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quant.scaling.folding import find_folds

SHARE = 0.005
"""Of a normalization's channels, at least one."""
LOUDNESS = (20.0, 50.0)
"""Factors are drawn evenly from this range."""


def plant_outliers(model: ir.Model, seed: int = 0) -> int:
    """Make some channels of every normalization loud, in place, and return how many.

    Args:
        model: Of float32 weights.
        seed: Of the channels and their factors.
    """
    rng = np.random.default_rng(seed)
    planted = 0
    for fold in find_folds(model.graph):
        if fold.is_of_norm:
            count = max(1, round(SHARE * fold.num_channels))
            factors = np.ones(fold.num_channels, np.float32)
            factors[rng.choice(fold.num_channels, count, replace=False)] = rng.uniform(*LOUDNESS, count)
            fold.apply(np.reciprocal(factors))
            planted += count
    return planted
