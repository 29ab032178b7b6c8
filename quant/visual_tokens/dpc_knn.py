"""Chat-UniVi: tokens merged into the densest ones among them (Jin et al., arXiv 2311.08046, section 3.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quant.visual_tokens.tile import Float32, Kept, Rows, Tile, highest, merged

Float64 = npt.NDArray[np.float64]

_NEIGHBOURS = 5
"""Of a token, itself among them: k of the authors' code for the first of the paper's three scales."""


def reduce(tile: Tile, quota: int) -> Kept:
    """Return the means of clusters around density peaks (DPC-KNN).

    A token is as dense as exp(-mean squared distance to its nearest neighbours). Centres are those of the largest
    density times distance to the nearest denser token; of the densest, to which none is, the largest distance in the
    tile counts. Every other token goes to the nearest centre. Of equally dense tokens the first is the denser, where
    the authors' code draws lots.

    A density has no unit, so one has to be chosen: in features of large scale density decides alone, in those of small
    scale distance. The authors' code divides distances by the root of the width and trains with that; here they are
    over the largest distance in the tile, so that every model's features count alike.

    The paper clusters before its connector and runs a trained block of attention behind each of three scales, whose
    tokens (64, 32 and 16 of an image) are read one after another; a video's frames are first clustered into events.
    Untrained checkpoints have no such blocks: here is one scale of any size, behind the connector, of each frame.
    """
    squares = _squared_distances(tile.single)
    centres = highest(_scores(squares), quota)
    groups: Rows = squares[centres].argmin(axis=0).astype(np.int64)
    groups[centres] = np.arange(quota)
    return merged(tile, groups)


def _scores(squares: Float32) -> Float64:
    """Return [P] density times distance to the nearest denser token."""
    num_neighbours = min(_NEIGHBOURS, len(squares))
    nearest = np.partition(squares, num_neighbours - 1, axis=1)[:, :num_neighbours]
    densities: Float64 = np.exp(-nearest.mean(axis=1, dtype=np.float64))
    ranks = np.empty(len(squares), np.int64)
    ranks[highest(densities, len(squares))] = np.arange(len(squares))
    is_denser = ranks[None, :] < ranks[:, None]
    gaps = np.where(is_denser, squares, squares.max()).min(axis=1).astype(np.float64)
    scores: Float64 = densities * np.sqrt(gaps)
    return scores


def _squared_distances(points: Float32) -> Float32:
    """Return [P, P] of which the largest is 1, unless all are 0."""
    centred = points - points.mean(axis=0)  # what all tokens share would cost digits
    lengths = np.einsum("nd,nd->n", centred, centred)
    squares: Float32 = np.maximum(lengths[:, None] + lengths[None, :] - 2.0 * (centred @ centred.T), 0.0)
    largest = squares.max()
    return squares / largest if largest > 0 else squares
