"""A prompt with the features of its images, of which any stretch can be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bundle.errors import SignatureError
from bundle.prompt import Prompt
from runtime.feeds import Embeds, Int64, Placed, TokenRun


@dataclass(frozen=True)
class FilledPrompt:
    """A prompt whose placeholders have their features.

    Attributes:
        prompt: Tokens and positions.
        placed: The features of each span, in order; views of what the encoder gave.
        memory: [R, W] what goes into states of kind "memory" before it is run; None: nothing does.
        adapter: Number of the one that it runs through, of those that the decoder holds.
    """

    prompt: Prompt
    placed: tuple[Placed, ...] = ()
    memory: Embeds | None = None
    adapter: int = 0

    @classmethod
    def of(cls, prompt: Prompt, features: Sequence[Embeds], adapter: int = 0) -> FilledPrompt:
        """Return a prompt with its images' features.

        Args:
            prompt: Its spans count the images from 0.
            features: Of each image, [rows, D] or [tiles, P, D].
            adapter: As of the class.

        Raises:
            SignatureError: An image has another number of rows than the prompt has places for it.
        """
        rows = [each.reshape(-1, each.shape[-1]) for each in features]
        if prompt.memory is not None:
            prompt = replace(prompt, memory=prompt.memory.filled([len(each) for each in rows]))
        memory = prompt.memory
        spans = prompt.spans if memory is None or memory.leaves_spans else ()
        in_spans = [(span.image, span.row, span.row + span.end - span.start) for span in spans]
        in_memory = () if memory is None else memory.pieces
        wanted, given = [0] * prompt.num_images, [len(each) for each in rows]
        for image, start, end in (*in_spans, *in_memory):
            wanted[image] += end - start
        if wanted != given:
            raise SignatureError(
                f"the vision encoder gave {given} rows of features by image, the prompt has places for {wanted}. "
                "Export the checkpoint again."
            )
        placed = tuple(
            Placed(span.start, rows[image][start:end])
            for span, (image, start, end) in zip(spans, in_spans, strict=True)
        )
        if memory is None or memory.is_prompt:
            return cls(prompt, placed, adapter=adapter)
        held = np.concatenate([rows[image][start:end] for image, start, end in in_memory])
        return cls(prompt, placed, held, adapter)

    @classmethod
    def of_ids(cls, ids: Int64) -> FilledPrompt:
        """Return a prompt of tokens alone, as benchmarks and tests want it."""
        return cls(Prompt(ids, (), np.arange(len(ids), dtype=np.int64), len(ids), 0))

    def skipping(self, num_layers: int) -> FilledPrompt:
        """Return the prompt with image tokens that skip the feed-forwards of so many layers."""
        return replace(self, placed=tuple(replace(each, num_skipped=num_layers) for each in self.placed))

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.prompt.num_tokens

    def run(self, start: int, end: int, lengths: Sequence[int], wanted: Sequence[int]) -> TokenRun:
        """Return tokens `start ... end - 1` as they are run.

        Args:
            start: First token.
            end: Behind the last one.
            lengths: [G] rows held before.
            wanted: Tokens of the run, counted from `start`, whose logits are wanted.

        Raises:
            ValueError: Some of the tokens see others behind the run.
        """
        prompt = self.prompt
        positions, features = prompt.positions[..., start:end], _between(self.placed, start, end)
        around = None if prompt.seen is None else _around(prompt.seen[:, start:end], start, end)
        seen = None if prompt.memory is None else prompt.memory.seen[start:end]
        ids = prompt.token_ids[start:end]
        return TokenRun(ids, positions, lengths, wanted, features, around=around, seen=seen, adapter=self.adapter)

    @property
    def seen_behind(self) -> Int64 | None:
        """[3] what tokens of an answer see of the memory: what the prompt's last token does."""
        return None if self.prompt.memory is None else self.prompt.memory.seen[-1]

    def seen_by(self, num_tokens: int) -> Int64 | None:
        """[num_tokens, 3] the same of so many of them."""
        seen = self.seen_behind
        return None if seen is None else np.broadcast_to(seen, (num_tokens, 3))


def _around(seen: Int64, start: int, end: int) -> Int64:
    """Return [2, T] how many tokens before and behind each token of a run the stretch begins and ends that it sees.

    Args:
        seen: [2, T] of the run, as of `bundle.prompt.Prompt`.
        start: Its first token.
        end: Behind its last one.

    Raises:
        ValueError: One sees tokens that are not in the run.
    """
    if (last := int(seen[1].max(initial=end))) > end:
        raise ValueError(f"tokens {start} to {end} see until {last}; run them together, as runtime.chunks cuts")
    own = np.arange(start, end)
    return np.stack([own - seen[0], seen[1] - own - 1])


def _between(placed: Sequence[Placed], start: int, end: int) -> tuple[Placed, ...]:
    """Return the features that lie in a stretch, counted from its start."""
    inside = []
    for each in placed:
        first, last = max(each.start, start), min(each.start + len(each.rows), end)
        if first < last:
            rows = each.rows[first - each.start : last - each.start]
            inside.append(replace(each, start=first - start, rows=rows))
    return tuple(inside)


def positions_from(first: int, num_tokens: int, like: Int64) -> Int64:
    """Return consecutive positions in the form of a prompt's: [num_tokens], or [3, num_tokens] of equal axes."""
    places = np.arange(first, first + num_tokens, dtype=np.int64)
    return places if like.ndim == 1 else np.broadcast_to(places, (*like.shape[:-1], num_tokens))
