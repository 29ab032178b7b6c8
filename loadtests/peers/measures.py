"""What every system is asked to do, so that the same work is compared; it crosses to peers' environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vision", "encode", "embed", "prefill", "decode", "first_token", "chats"]

ANSWER_TOKENS = 64
"""Of each chat over HTTP."""


@dataclass(frozen=True)
class Measure:
    """One piece of work that every system does in turn.

    Attributes:
        name: On the command line and in tables.
        kind: Encode a 512-px tile by the tower of the vision-language model ("vision"), images of 224 px by SigLIP's
            ("encode"), go from JPEGs to CLIP's vectors ("embed"), run a prompt into an empty cache, decode one token of
            each sequence, go from an image and a question to the first token, or answer chats over HTTP.
        size: Tiles, images, prompt tokens, sequences, or chats at once.
        cached_tokens: Before a decode step; 0 elsewhere.
        is_repeated: The image was seen before.
    """

    name: str
    kind: Kind
    size: int
    cached_tokens: int = 0
    is_repeated: bool = False

    @property
    def items(self) -> int:
        """Return how many units one run makes, for a rate."""
        return self.size * ANSWER_TOKENS if self.kind == "chats" else self.size

    @property
    def unit(self) -> str:
        """Return what a rate counts; empty where none is shown."""
        return {"vision": "", "encode": "images", "embed": "images", "first_token": ""}.get(self.kind, "tokens")


MEASURES = (
    Measure("vision", "vision", 1),
    Measure("prefill-512", "prefill", 512),
    Measure("prefill-1200", "prefill", 1200),
    Measure("decode-1", "decode", 1, 512),
    Measure("decode-8", "decode", 8, 512),
    Measure("first-token-new", "first_token", 1),
    Measure("first-token-again", "first_token", 1, is_repeated=True),
    Measure("chats-8", "chats", 8),
    Measure("siglip-1", "encode", 1),
    Measure("siglip-8", "encode", 8),
    Measure("clip-1", "embed", 1),
    Measure("clip-8", "embed", 8),
    Measure("clip-32", "embed", 32),
)
"""All that is compared, in the order of a run."""

STEPS = 8
"""Decode steps in one run, of which the mean counts."""

LONGEST_TOKENS = 2048
"""Rows that a sequence needs for any of them."""

SEQUENCES = 8
"""Sequences of the largest batch."""
