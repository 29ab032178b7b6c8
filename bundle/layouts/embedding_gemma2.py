"""The tokens of an image between a start and an end, where all tokens of an input see all of it (EmbeddingGemma 2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.layouts.gemma4 import Gemma4Prompt
from bundle.layouts.prompt import LooksAhead


class EmbeddingGemma2Prompt(Gemma4Prompt):
    """As EmbeddingGemma 2 was trained; layers with a window keep to it."""

    looks_ahead: ClassVar[LooksAhead] = "prompt"

    kind: Literal["embedding_gemma2"] = "embedding_gemma2"  # type: ignore[assignment]
