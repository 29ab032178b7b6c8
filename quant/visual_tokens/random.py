"""Tokens drawn by lot: what every method has to beat."""

from __future__ import annotations

from quant.visual_tokens.tile import Kept, Tile, chosen


def reduce(tile: Tile, quota: int) -> Kept:
    """Return tokens drawn without replacement, each as likely as any other; the same for the same tile."""
    return chosen(tile, tile.generator.choice(tile.num_tokens, quota, replace=False))
