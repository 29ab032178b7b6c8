"""Idefics3's tiles with markers, where all tokens of a prompt see all of it (ModernVBERT)."""

from __future__ import annotations

from typing import ClassVar, Literal

from bundle.layouts.idefics3 import Idefics3Prompt
from bundle.layouts.prompt import LooksAhead


class ModernVBertPrompt(Idefics3Prompt):
    """As ModernVBERT was trained (arXiv 2510.01149, section 3); layers with a window keep to it."""

    looks_ahead: ClassVar[LooksAhead] = "prompt"

    kind: Literal["modernvbert"] = "modernvbert"  # type: ignore[assignment]
