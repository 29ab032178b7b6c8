"""Scores of a bundle whose decoder ranks, without a server: what a gate measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.directory import Bundle
from bundle.prompt import Placeholder, Turn
from runtime.embedder_runner import EmbedderRunner
from runtime.graph import Array
from runtime.pair_runner import PairRunner
from runtime.settings import RuntimeSettings

_Written = tuple[list[Turn], list[Image.Image]]


class RankRunner:
    """Raw scores of pairs, as of `runtime.pair_runner.PairRunner`.

    Args:
        bundle: Of a decoder that ranks.
        settings: Provider and threads.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings) -> None:
        self._runner = EmbedderRunner(bundle, settings)

    def scores(self, query: str, documents: Sequence[str | Image.Image]) -> npt.NDArray[np.float64]:
        """Return [n] how well each document fits the query, as the graph says it."""
        found = self._runner.raw_of_turns([_pair(query, document) for document in documents])
        return np.array([float(vectors[0, 0]) for vectors in found], np.float64)

    def feeds(self, query: str, document: str | Image.Image) -> dict[str, Array]:
        """Return the decoder's inputs for one pair."""
        return self._runner.feeds(*_pair(query, document))


def runner_of_pairs(bundle: Bundle, settings: RuntimeSettings) -> PairRunner | RankRunner:
    """Return what scores pairs by a bundle."""
    return RankRunner(bundle, settings) if bundle.manifest.pairs is None else PairRunner(bundle, settings)


def _pair(query: str, document: str | Image.Image) -> _Written:
    if isinstance(document, str):
        return [Turn("user", (query,)), Turn("user", (document,))], []
    return [Turn("user", (query,)), Turn("user", (Placeholder.IMAGE,))], [document]
