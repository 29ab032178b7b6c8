"""A prompt that some image tokens are left out of, the others staying where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bundle.errors import PromptError
from bundle.layouts.prompt import Memory
from bundle.prompt import Prompt, Span


def reduced(prompt: Prompt, kept: Sequence[npt.NDArray[np.int64]]) -> Prompt:
    """Return a prompt with some rows of its images; text, positions and the next position are as they were.

    Args:
        prompt: With a token for every row.
        kept: Of each image, the rows that stay, rising.
    Returns:
        A prompt whose spans count the rows that stay, in the order in which they are given.

    Raises:
        PromptError: Its images stand in a memory, not in its tokens.
    """
    if prompt.memory is not None and not prompt.memory.is_prompt:
        raise PromptError("the model's images stand in a memory beside its prompts, of which no token can be left out")
    is_kept = np.ones(prompt.num_tokens, np.bool_)
    for span in prompt.spans:
        rows = kept[span.image]
        inside = rows[(rows >= span.row) & (rows < span.row + span.end - span.start)]
        is_kept[span.start : span.end] = False
        is_kept[inside - span.row + span.start] = True
    if is_kept.all():
        return prompt
    ends = np.concatenate([[0], np.cumsum(is_kept)])
    return replace(
        prompt,
        token_ids=prompt.token_ids[is_kept],
        spans=_spans(prompt.spans, ends),
        positions=np.ascontiguousarray(prompt.positions[..., is_kept]),
        seen=None if prompt.seen is None else ends[prompt.seen[:, is_kept]],
        memory=None if prompt.memory is None else Memory.of_prompt(int(ends[-1])),
    )


def _spans(spans: Sequence[Span], ends: npt.NDArray[np.int64]) -> tuple[Span, ...]:
    """Return where the tokens of each span are now.

    Args:
        spans: Before.
        ends: [T + 1] how many tokens before each one stay.
    """
    found, rows = list[Span](), dict[int, int]()
    for span in spans:
        start, end = int(ends[span.start]), int(ends[span.end])
        if start < end:
            first = rows.get(span.image, 0)
            found.append(Span(start, end, span.image, first))
            rows[span.image] = first + end - start
    return tuple(found)
