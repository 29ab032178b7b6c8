"""Random layers for the tests of KV policies, and the rows that a policy keeps of one."""

from __future__ import annotations

import numpy as np

from quant.kv.compression import num_kept_rows
from quant.kv.policy import Budget, LayerRows, Policy, Rows
from quant.kv.table import load_policy

WINDOW = 32


def random_layer(
    num_rows: int, num_kv: int = 2, group: int = 3, size: int = 16, window: int = WINDOW, seed: int = 0
) -> LayerRows:
    """Return a layer of random numbers whose first half, but for its first rows, is an image's."""
    numbers = np.random.default_rng(seed)

    def drawn(*sizes: int) -> np.ndarray:
        return numbers.standard_normal(sizes).astype(np.float32)

    keys, values = drawn(num_kv, num_rows, size), drawn(num_kv, num_rows, size)
    is_image = np.zeros(num_rows, np.bool_)
    is_image[num_rows // 10 : num_rows // 2] = True
    return LayerRows(seed, keys, values, drawn(num_kv * group, min(window, num_rows), size), is_image, seed)


def policy_of(name: str, layer: LayerRows, num_kept: int) -> Policy:
    return load_policy(name)(Budget(layer.num_rows, num_kept, layer.queries.shape[1]))


def kept_by(name: str, layer: LayerRows, share: float) -> Rows:
    num_kept = num_kept_rows(layer.num_rows, share)
    return policy_of(name, layer, num_kept).kept(layer, num_kept)
