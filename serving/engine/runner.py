"""Scheduled work to logits: builds the arrays, puts image features in their places, runs the graphs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.session import Array, BoundDecoder, Session
from serving.engine.scheduler import Decode, Prefill
from serving.engine.sequence import Sequence

Logits = npt.NDArray[np.float32]
Embeds = npt.NDArray[np.float32]


class Runner:
    """The graphs of one generative model. Used by one thread; holds no queue.

    Args:
        embed_tokens: Token ids to embeddings.
        decoder: Embeddings to logits, with the cache.
        image_token_id: The placeholder that a row of image features replaces.
    """

    def __init__(self, embed_tokens: Session, decoder: BoundDecoder, image_token_id: int) -> None:
        self._embed_tokens = embed_tokens
        self._decoder = decoder
        self._image_token_id = image_token_id

    def prefill(self, work: Prefill) -> Logits:
        """Write a chunk of a prompt into its slot and return [1, V] logits of the chunk's last token."""
        sequence = work.sequence
        if sequence.slot is None:
            raise ValueError(f"sequence {sequence.request_id} has no slot")
        positions = np.arange(work.start, work.end, dtype=np.int64)[None]
        feeds: dict[str, Array] = {
            "inputs_embeds": self._prompt_embeds(sequence, work.start, work.end)[None],
            "position_ids": positions,
            "past_lengths": positions[:, 0],
            "logits_indices": np.array([[work.end - work.start - 1]], np.int64),
        }
        logits: Logits = self._decoder.step(sequence.slot, feeds)[0]
        return logits

    def decode(self, work: Decode) -> Logits:
        """Write one token into every row's slot and return [n, V] logits of the n rows that have an owner."""
        lengths = np.array([row.num_cached for row in work.rows], np.int64)
        ids = np.array([[row.sequence.output_ids[-1] if row.sequence else 0] for row in work.rows], np.int64)
        feeds: dict[str, Array] = {
            "inputs_embeds": self._embed(ids),
            "position_ids": lengths[:, None],
            "past_lengths": lengths,
            "logits_indices": np.zeros((len(lengths), 1), np.int64),
        }
        logits: Logits = self._decoder.step(work.start, feeds)[:, 0]
        wanted = [row.sequence is not None for row in work.rows]
        return logits if all(wanted) else logits[wanted]

    def _embed(self, ids: npt.NDArray[np.int64]) -> Embeds:
        embeds: Embeds = self._embed_tokens.run({"input_ids": ids})["inputs_embeds"]
        return embeds

    def _prompt_embeds(self, sequence: Sequence, start: int, end: int) -> Embeds:
        """Return [end - start, D] embeddings of part of a prompt, image features in place of placeholders."""
        embeds: Embeds = self._embed(sequence.prompt_ids[None, start:end])[0]
        if sequence.image_rows is None:
            return embeds
        is_image = sequence.prompt_ids == self._image_token_id
        num_before = int(np.count_nonzero(is_image[:start]))
        num_here = int(np.count_nonzero(is_image[start:end]))
        return merged(embeds, sequence.image_rows[num_before : num_before + num_here], is_image[start:end])


def merged(embeds: Embeds, image_rows: Embeds, is_image: npt.NDArray[np.bool_]) -> Embeds:
    """Return the embeddings with image features in place of placeholders.

    Args:
        embeds: [T, D].
        image_rows: [m, D], in the order of the placeholders.
        is_image: [T], true m times.

    Raises:
        ValueError: The mask does not count m.
    """
    if len(image_rows) != np.count_nonzero(is_image):
        raise ValueError(f"{len(image_rows)} rows of image features for {np.count_nonzero(is_image)} placeholders")
    result = embeds.copy()
    result[is_image] = image_rows
    return result
