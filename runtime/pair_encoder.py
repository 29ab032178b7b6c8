"""Pairs of a text and an image to scores: a cross-encoder's one graph, run over pairs whose images have one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
    """A text and an image.

    Attributes:
        text: Of one row.
        pixels: [1, 3, height, width].
    """

    text: TextBatch
    pixels: Pixels


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
        """Return [n] between 0 and 1 how well each text and image fit: the logistic function of the graph's score."""
        found = np.empty(len(pairs), np.float64)
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, pair in enumerate(pairs):
            of_size[pair.pixels.shape].append(place)
        for places in of_size.values():
            found[places] = self._session.run(self._feeds([pairs[place] for place in places]))[tensors.PAIR_SCORES]
        return (1 / (1 + np.exp(-found))).astype(np.float32)

    def _feeds(self, pairs: Sequence[Pair]) -> dict[str, npt.NDArray[np.generic]]:
        width = max(pair.text.input_ids.shape[1] for pair in pairs)
        input_ids = np.full((len(pairs), width), self._dims.pad_token_id, np.int64)
        attention_mask = np.zeros((len(pairs), width), np.int64)
        for row, pair in enumerate(pairs):
            ids = pair.text.input_ids[0]
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = pair.text.attention_mask[0]
        pixels = np.concatenate([pair.pixels for pair in pairs])
        return {
            tensors.INPUT_IDS: input_ids,
            tensors.ATTENTION_MASK: attention_mask,
            tensors.PIXEL_VALUES: pixels,
        }
