"""A prompt that runs through a decoder segment by segment and loses image tokens on the way.

All of its tokens run through the first segment, in chunks, and their hidden states are kept; at the cut somebody
chooses which image tokens go on; those that do run through the next segment, and so forth. Text always goes on. What
was dropped keeps its rows in the layers that read it, and every token its position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import BundleFormatError
from bundle.manifest import Manifest
from runtime.chunks import next_chunk
from runtime.feeds import Embeds, Int64, Placed, TokenRun
from runtime.filled_prompt import FilledPrompt
from runtime.graph import Array

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """A prompt where one segment ends: all that a choice of image tokens may depend on.

    Attributes:
        number: Of the cut, counted from 0.
        num_cuts: Of the decoder.
        layer: The first one behind the cut.
        num_layers: Of the decoder.
        is_image: [L] bool, of each token that came so far.
        num_image_tokens: Of the prompt, those that were dropped before with them.
        hidden: [L, D] float32, what the next layer will read.
        queries: [L, H, C] float32 of the last layer, rotated.
        keys: [L, K, C] float32 of the last layer, rotated.
    """

    number: int
    num_cuts: int
    layer: int
    num_layers: int
    is_image: npt.NDArray[np.bool_]
    num_image_tokens: int
    hidden: Float32 = field(repr=False)
    queries: Float32 = field(repr=False)
    keys: Float32 = field(repr=False)

    @property
    def image_rows(self) -> Int64:
        """Which of the L tokens are an image's."""
        return np.flatnonzero(self.is_image)


Choose = Callable[[Cut], Int64]
"""Returns the image tokens that go on, as numbers of the L tokens; asked only where there are some."""


@dataclass(frozen=True)
class Layers:
    """Where a decoder is cut.

    Attributes:
        ends: The layer behind each segment.
        head_size: C.
    """

    ends: tuple[int, ...]
    head_size: int

    @classmethod
    def of(cls, manifest: Manifest) -> Layers:
        """Return the cuts of a bundle that was exported in segments.

        Raises:
            BundleFormatError: Its states are no keys and values of heads.
        """
        found = {state.scale_shape[-1] for state in manifest.states if state.kind == "rows"}
        if len(found) != 1:
            raise BundleFormatError(
                f"{manifest.name} is in segments, and heads of its states are of the sizes {sorted(found)}; what is "
                "chosen at a cut is computed of heads of one size. Export the checkpoint again."
            )
        (size,) = found
        return cls(tuple(part.end_layer for part in manifest.segments), size)

    def share(self, segment: int) -> float:
        """Return how much of the decoder one segment is."""
        first = self.ends[segment - 1] if segment else 0
        return (self.ends[segment] - first) / self.ends[-1]


class SegmentedPrompt:
    """One prompt on its way through the segments.

    Args:
        prompt: The whole of it.
        layers: Of the decoder.
        choose: Called at each cut.

    Attributes:
        prompt: As it was given.
        layers: As they were given.
        segment: That runs now; behind the last one when all have run.
        num_run: Tokens of the segment that have run.
        rows: [G] rows that are in the cache, one group for each segment.
    """

    def __init__(self, prompt: FilledPrompt, layers: Layers, choose: Choose) -> None:
        self.prompt = prompt
        self.layers = layers
        self._choose = choose
        self._is_image = np.zeros(prompt.num_tokens, np.bool_)
        for placed in prompt.placed:
            self._is_image[placed.start : placed.start + len(placed.rows)] = True
        self.restart()

    def restart(self) -> None:
        """Begin anew: the cache holds nothing of the prompt."""
        self.segment = 0
        self.num_run = 0
        self.rows = [0] * len(self.layers.ends)
        self._tokens: Int64 = np.arange(self.prompt.num_tokens)
        self._hidden: Embeds | None = None
        self._found: list[Mapping[str, Array]] = []

    @property
    def is_read(self) -> bool:
        """True when every segment has run."""
        return self.segment == len(self.layers.ends)

    @property
    def num_tokens(self) -> int:
        """Tokens that run through the segment of now."""
        return len(self._tokens)

    @property
    def num_kept_image_tokens(self) -> int:
        """Image tokens among them."""
        return int(self._is_image[self._tokens].sum())

    @property
    def mean_rows(self) -> int:
        """Rows that are in the cache, the mean over layers."""
        return round(sum(self.layers.share(at) * rows for at, rows in enumerate(self.rows)))

    @property
    def is_last(self) -> bool:
        """True where the segment of now gives logits."""
        return self.segment == len(self.layers.ends) - 1

    @property
    def num_left_tokens(self) -> int:
        """What is left to be run at most, in tokens of the whole decoder."""
        if self.is_read:
            return 0
        later = sum(map(self.layers.share, range(self.segment + 1, len(self.layers.ends))))
        left = (self.num_tokens - self.num_run) * self.layers.share(self.segment)
        return ceil(left + self.num_tokens * later)

    def next_chunk(self, most_tokens: int) -> tuple[int, int]:
        """Return the stretch of the segment's tokens that runs next."""
        return self.num_run, self.num_run + next_chunk(self.num_tokens - self.num_run, most_tokens)

    def run(self, start: int, end: int) -> TokenRun:
        """Return a stretch of the segment's tokens as they are run, hidden states in the places of embeddings."""
        wanted = [end - start - 1]
        if self._hidden is None:
            return self.prompt.run(start, end, self.rows, wanted)
        tokens = self._tokens[start:end]
        whole = self.prompt.prompt
        return TokenRun(
            whole.token_ids[tokens],
            whole.positions[..., tokens],
            self.rows,
            wanted,
            _placed(self._is_image[tokens], self._hidden[start:end]),
            self._hidden[start:end],
            adapter=self.prompt.adapter,
        )

    def take(self, found: Mapping[str, Array], num_tokens: int) -> None:
        """Record what a run of the segment gave, and go on to the next one where it was the last run."""
        self._found.append(found)
        self.num_run += num_tokens
        self.rows[self.segment] += num_tokens
        if self.num_run == self.num_tokens:
            self._next_segment()

    def _next_segment(self) -> None:
        if not self.is_last:
            hidden = self._whole(tensors.HIDDEN_STATES)
            kept = self._kept(hidden)
            self._tokens, self._hidden = self._tokens[kept], hidden[kept]
        self._found = []
        self.segment += 1
        self.num_run = 0

    def _kept(self, hidden: Float32) -> Int64:
        """Return which of the segment's tokens go on: text, and the image tokens that are chosen."""
        is_image = self._is_image[self._tokens]
        if not is_image.any():
            return np.arange(len(is_image))
        heads = (self.num_tokens, -1, self.layers.head_size)
        cut = Cut(
            self.segment,
            len(self.layers.ends) - 1,
            self.layers.ends[self.segment],
            self.layers.ends[-1],
            is_image,
            int(self._is_image.sum()),
            hidden,
            self._whole(tensors.QUERIES).reshape(heads),
            self._whole(tensors.KEYS).reshape(heads),
        )
        stays = ~is_image
        stays[self._choose(cut)] = True
        return np.flatnonzero(stays)

    def _whole(self, name: str) -> Float32:
        whole: Float32 = np.concatenate([found[name][0] for found in self._found])
        return whole


def _placed(is_image: npt.NDArray[np.bool_], hidden: Embeds) -> Sequence[Placed]:
    """Return the rows of image tokens, for decoders that treat them otherwise."""
    edges = np.flatnonzero(np.diff(is_image.astype(np.int8), prepend=0, append=0))
    return [Placed(int(start), hidden[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]
