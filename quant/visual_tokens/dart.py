"""DART: Duplication-Aware Reduction of Tokens (Wen et al., arXiv 2502.11494, section 3)."""

from __future__ import annotations

import numpy as np

from quant.visual_tokens.tile import Float32, Kept, Rows, Tile, chosen, highest, unit

_IMAGE_PIVOTS = 4
_TEXT_PIVOTS = 4
"""Of each kind; the paper's own numbers."""


def reduce(tile: Tile, quota: int) -> Kept:
    """Return pivots, and the tokens least like them.

    Pivots are the image tokens of the largest L1 norm, which stay, and the text tokens of the largest. Each pivot in
    turn, image before text and the largest first, takes its share of what is left of the quota: of the tokens that
    nobody has taken those with the lowest cosine to it. Shares differ by at most one, the first ones larger.

    The paper does this in the second layer of the decoder with keys for norms; here, before it, with the embeddings
    that the decoder reads, as TensorRT-Edge-LLM does. Its text is all text of the request; ours that of the message
    which shows the image, so that the next turn of a conversation finds the image's rows as they were.
    """
    features = tile.single
    pivots = highest(_l1(features), min(_IMAGE_PIVOTS, quota))
    is_free = np.ones(tile.num_tokens, np.bool_)
    is_free[pivots] = False
    directions, tokens = _directions(tile, pivots), unit(features)
    left = quota - len(pivots)
    for at, direction in enumerate(directions):
        share = left // len(directions) + (at < left % len(directions))
        candidates = np.flatnonzero(is_free)
        is_free[candidates[highest(-(tokens[candidates] @ direction), share)]] = False
    return chosen(tile, np.flatnonzero(~is_free))


def _directions(tile: Tile, pivots: Rows) -> Float32:
    """Return [pivots, D] of length 1: the image's, then the text's."""
    of_image = tile.single[pivots]
    if tile.text is None or not len(tile.text):
        return unit(of_image)
    return unit(np.concatenate([of_image, tile.text[highest(_l1(tile.text), _TEXT_PIVOTS)]]))


def _l1(vectors: Float32) -> Float32:
    norms: Float32 = np.abs(vectors).sum(axis=-1)
    return norms
