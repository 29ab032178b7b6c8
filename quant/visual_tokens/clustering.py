"""Clusters of tokens, each read as its mean (Token Sequence Compression; Omri et al., arXiv 2504.17892, section 3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quant.visual_tokens.tile import Float32, Kept, Rows, Tile, group_sums, merged

_MOST_ROUNDS = 10
_COPY = 1e-5
"""Of a point's squared length: what is nearer than that, in products of float32, is a copy."""


def reduce(tile: Tile, quota: int) -> Kept:
    """Return the means of k-means clusters of the features.

    Centres begin as k-means++ chooses them (Arthur and Vassilvitskii, 2007), drawn by the tile's own generator; then
    at most ten rounds of Lloyd's. A cluster that lost all its tokens takes the one that is furthest from its centre.
    """
    points = tile.single
    centres = points[_first_centres(points, quota, tile.generator)]
    groups = _nearest(points, centres)
    for _ in range(_MOST_ROUNDS):
        centres = _means(points, groups, quota)
        before, groups = groups, _nearest(points, centres)
        if np.array_equal(before, groups):
            break
    return merged(tile, groups)


def _first_centres(points: Float32, num: int, generator: np.random.Generator) -> list[int]:
    """Return which points are the first centres: each further one by the square of its distance to the nearest."""
    squares = _squares(points)
    found = [int(generator.integers(len(points)))]
    distances = np.full(len(points), np.inf)
    while len(found) < num:
        last = found[-1]
        distances = np.minimum(distances, squares + squares[last] - 2.0 * (points @ points[last]))
        distances[distances < _COPY * squares] = 0.0
        distances[found] = 0.0
        total = distances.sum()
        if total > 0:
            found.append(int(generator.choice(len(points), p=distances / total)))
        else:  # all points are centres: any other one is a copy
            found.append(int(np.setdiff1d(np.arange(len(points)), found)[0]))
    return found


def _nearest(points: Float32, centres: Float32) -> Rows:
    """Return [P] the nearest centre of each point; every centre has one at least."""
    squares = _squares(centres)[None, :] - 2.0 * (points @ centres.T)  # less the point's own, which orders nothing
    groups: Rows = squares.argmin(axis=1).astype(np.int64)
    distances = squares[np.arange(len(points)), groups] + _squares(points)
    for empty in np.setdiff1d(np.arange(len(centres)), groups):
        sizes = np.bincount(groups, minlength=len(centres))
        furthest = int(np.where(sizes[groups] > 1, distances, -np.inf).argmax())
        groups[furthest], distances[furthest] = empty, 0.0
    return groups


def _means(points: Float32, groups: Rows, num: int) -> Float32:
    return np.asarray(group_sums(points, groups, num) / np.bincount(groups, minlength=num)[:, None], np.float32)


def _squares(vectors: Float32) -> npt.NDArray[np.float64]:
    """Return [n] squared lengths in float64, as they become chances that sum up to 1."""
    squares: npt.NDArray[np.float64] = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return squares
