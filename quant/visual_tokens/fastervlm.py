"""FasterVLM: what the tower's class token looks at (Zhang et al., arXiv 2412.01818, section 3.2)."""

from __future__ import annotations

from quant.visual_tokens.tile import Kept, Tile, TowerView, chosen, highest


def reduce(tile: Tile, quota: int) -> Kept:
    """Return the tokens that receive most attention in the layer that the features come of.

    The paper reads the class token's attention. A tower without one (SigLIP) has none: there it is the mean over all
    patches, as VisionZip's authors do.
    """
    return chosen(tile, highest(view_of(tile).received, quota))


def view_of(tile: Tile) -> TowerView:
    """Return the tower's outputs.

    Raises:
        ValueError: Nobody filled them.
    """
    if tile.tower is None:
        raise ValueError("the method reads the tower's attention, and the tile comes without")
    return tile.tower
