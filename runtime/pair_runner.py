"""Scores of a cross-encoder's bundle, without a server: what a gate measures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import BundleFormatError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import TOKENIZER, Tokenizer
from bundle.text_pairs import TextPairs
from runtime.graph import Array
from runtime.pair_encoder import Pair, PairEncoder, frames_together
from runtime.settings import RuntimeSettings

_DEFAULTS = RuntimeSettings()
_PAIRS_AT_ONCE = 8


class PairRunner:
    """Raw scores of pairs; texts that are too long are cut.

    Args:
        bundle: Of a cross-encoder.
        settings: Provider and threads.

    Raises:
        BundleFormatError: It is none.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings = _DEFAULTS) -> None:
        if bundle.manifest.pairs is None:
            raise BundleFormatError(f"{bundle.directory} is no cross-encoder; it reads no pairs")
        self._bundle, self._settings, self._dims = bundle, settings, bundle.manifest.pairs
        self._tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
        self._texts = TextPairs(self._tokenizer, self._dims.max_text_tokens)

    # Opened late: a model of two texts has no preprocessing, and calibration runs no graph.
    @cached_property
    def _spec(self) -> ImageSpec:
        return ImageSpec.read(self._bundle.path(PREPROCESSOR))

    @cached_property
    def _encoder(self) -> PairEncoder:
        return PairEncoder(self._bundle, self._settings)

    def scores(self, query: str, documents: Sequence[str | Image.Image]) -> npt.NDArray[np.float64]:
        """Return [n] how well each document fits the query, as the graph says it."""
        starts = range(0, len(documents), _PAIRS_AT_ONCE)
        parts = [[self._pair(query, each) for each in documents[at : at + _PAIRS_AT_ONCE]] for at in starts]
        return np.concatenate([self._encoder.raw_scores(part) for part in parts])

    def feeds(self, query: str, document: str | Image.Image) -> dict[str, Array]:
        """Return the graph's inputs for one pair."""
        return dict(self._encoder.feeds([self._pair(query, document)]))

    def _pair(self, query: str, document: str | Image.Image) -> Pair:
        longest = self._dims.max_text_tokens
        if isinstance(document, str):
            return Pair(self._texts.row(query, document, longest))
        row = self._tokenizer.encode_batch(
            [query],
            max_tokens=longest,
            pad_token_id=self._dims.pad_token_id,
            pads_to_max=False,
            most_tokens=longest,
        )
        still = [self._spec.preprocess([document]).groups[0]] * self._dims.num_frames
        return Pair(row, frames_together(still))
