"""PyramidKV: SnapKV with more rows in lower layers (Cai et al., arXiv 2406.02069, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from quant.kv.snapkv import SnapKV

_BETA = 20
"""How steep the pyramid is; the paper's code."""


class PyramidKV(SnapKV):
    """Chooses as SnapKV does; layer l keeps w + max - l * (max - min) / (layers - 1) rows, rounded down.

    min = (n - w) // 20 and max = 2 (n - w) - min; where max is more than the L - w rows there are, max = L - w and
    min = 2 (n - w) - max. The mean over layers is n. The paper's code rounds the step from layer to layer down, so
    that it keeps a few rows more than the budget; here what a layer keeps is rounded.
    """

    def counts(self, weights: Sequence[float]) -> list[int]:
        """Return rows that fall from the first layer to the last."""
        window, num_rows = self.window, self.budget.num_rows
        beside = self.budget.num_kept - window
        least = beside // _BETA
        most = 2 * beside - least
        if most >= num_rows - window:
            most = num_rows - window
            least = 2 * beside - most
        last = max(len(weights) - 1, 1)
        return [window + (most * last - at * (most - least)) // last for at in range(len(weights))]
