"""Experts in the feed-forwards of a tower's layers, as a config says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bundle.errors import UnsupportedConfigError

_KEYS = ("layers", "num_experts", "num_experts_per_tok", "norm_topk_prob")


@dataclass(frozen=True)
class TowerExperts:
    """Layers whose feed-forward is several, of which each vector meets the most probable ones.

    Attributes:
        layers: Their numbers, from 0.
        num: Experts of each.
        per_token: Chosen for each patch or word.
        is_normalised: What the chosen count for sums to 1; else each counts with its share among all.
    """

    layers: frozenset[int]
    num: int
    per_token: int
    is_normalised: bool

    @classmethod
    def read(cls, raw: Mapping[str, Any] | None, num_layers: int) -> TowerExperts | None:
        """Return the experts of a tower's `moe`; None where it has none.

        Every key is wanted: papers differ in each, and weights do not show the last two.

        Raises:
            UnsupportedConfigError: A key is missing, unknown or of another kind, or there are no such layers.
        """
        if raw is None:
            return None
        if wrong := sorted(set(raw) ^ set(_KEYS)):
            raise UnsupportedConfigError(f"moe: {', '.join(wrong)} missing or not built; wanted are {', '.join(_KEYS)}")
        layers, num, per_token, is_normalised = (raw[key] for key in _KEYS)
        if not isinstance(layers, list) or not layers or not set(layers) <= set(range(num_layers)):
            raise UnsupportedConfigError(f"moe.layers is {layers!r}; wanted are some of 0 to {num_layers - 1}")
        if not all(isinstance(each, int) for each in (num, per_token)) or not 1 <= per_token <= num:
            raise UnsupportedConfigError(f"moe: {per_token!r} experts are chosen for each token, of {num!r}")
        if not isinstance(is_normalised, bool):
            raise UnsupportedConfigError(f"moe.norm_topk_prob is {is_normalised!r}; wanted is true or false")
        return cls(frozenset(layers), num, per_token, is_normalised)
