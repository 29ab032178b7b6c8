"""Pairs to scores: a cross-encoder's one graph, run over pairs of texts, or of texts and images of one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, SignatureError
from bundle.image import Pixels
from bundle.manifest import ComponentName
from bundle.text import TextBatch
from runtime.session import Session
from runtime.settings import RuntimeSettings

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """A text and an image, or two texts.

    Attributes:
        text: Of one row: a text, or two as `bundle.text_pairs` joins them.
        pixels: [1, 3, height, width]; of a video `frames_together`; None of two texts.
    """

    text: TextBatch
    pixels: Pixels | None = None


class PairEncoder:
    """The graph of a cross-encoder.

    Args:
        bundle: Of a model that reads pairs.
        settings: Provider and threads.

    Attributes:
        sessions: By the graph's name in the manifest.

    Raises:
        BundleError: The graph is missing, unusable, or not what the manifest says.
        MachineError: This machine cannot run it.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings) -> None:
        if bundle.manifest.pairs is None:
            raise BundleFormatError(f"{bundle.directory} is no cross-encoder; it reads no pairs")
        self._dims = bundle.manifest.pairs
        name = bundle.manifest.graph("pair_encoder")
        self._session = Session(bundle, name, settings)
        self.sessions: dict[ComponentName, Session] = {name: self._session}
        if self._session.output != tensors.PAIR_SCORES:
            raise SignatureError(
                f"{self._session.path} gives {self._session.output}; a cross-encoder gives {tensors.PAIR_SCORES}. "
                "Export the checkpoint again."
            )

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Return [n] between 0 and 1 how well each pair fits: the logistic function of the graph's score."""
        return fits(self.raw_scores(pairs))

    def raw_scores(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float64]:
        """Return [n] the graph's own scores, of any size."""
        found = np.empty(len(pairs), np.float64)
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, pair in enumerate(pairs):
            of_size[_alike(pair)].append(place)
        for places in of_size.values():
            found[places] = self._session.run(self.feeds([pairs[place] for place in places]))[tensors.PAIR_SCORES]
        return found

    def feeds(self, pairs: Sequence[Pair]) -> dict[str, npt.NDArray[np.generic]]:
        """Return the graph's inputs for pairs whose images have one size, shorter texts padded on the right."""
        texts = [pair.text for pair in pairs]
        types = [text.input_ids * 0 if text.token_type_ids is None else text.token_type_ids for text in texts]
        feeds: dict[str, npt.NDArray[np.generic]] = {
            tensors.INPUT_IDS: _padded([text.input_ids for text in texts], self._dims.pad_token_id),
            tensors.ATTENTION_MASK: _padded([text.attention_mask for text in texts], 0),
            tensors.TOKEN_TYPE_IDS: _padded(types, 0),
        }
        if images := [pair.pixels for pair in pairs if pair.pixels is not None]:
            feeds[tensors.PIXEL_VALUES] = np.concatenate(images)
        return {spec.name: feeds[spec.name] for spec in self._session.component.inputs}


def chosen_of(num_given: int, num_wanted: int) -> tuple[int, ...]:
    """Return which of some frames are read: the middle one of as many stretches, or each for as long as it lasts.

    Stretches and middles are those of All-in-one's evaluation (arXiv 2203.07303; its `sample_frames`).
    """
    if num_given < num_wanted:
        return tuple(place * num_given // num_wanted for place in range(num_wanted))
    ends = np.linspace(0, num_given, num_wanted + 1).astype(int)
    return tuple(int(start + end - 1) // 2 for start, end in pairwise(ends))


def frames_together(frames: Sequence[Pixels]) -> Pixels:
    """Return a video's frames [1, 3, height, width] as one tile [1, 3 * n, height, width], one behind the other."""
    return np.concatenate(frames, axis=1)


def fits(raw: npt.NDArray[np.float64]) -> Scores:
    """Return the logistic function of raw scores, which overflows nowhere."""
    return (0.5 * (1 + np.tanh(raw / 2))).astype(np.float32)


def _alike(pair: Pair) -> tuple[int, ...]:
    """Return what pairs of one run have in common: images of one size, or rows of which none is twice as long."""
    return (pair.text.input_ids.shape[1].bit_length(),) if pair.pixels is None else pair.pixels.shape


def _padded(rows: Sequence[npt.NDArray[np.int64]], filler: int) -> npt.NDArray[np.int64]:
    """Return rows [1, T] of several lengths as [n, T]."""
    padded = np.full((len(rows), max(row.shape[1] for row in rows)), filler, np.int64)
    for place, row in enumerate(rows):
        padded[place, : row.shape[1]] = row[0]
    return padded
