"""No token for an image: a memory holds what an encoder made of it and of the question (Florence-2)."""

from __future__ import annotations

from typing import Literal

from bundle.layouts.encoded import WholeMemoryPrompt


class Florence2Prompt(WholeMemoryPrompt):
    """As Florence-2 was trained: the prompt is how every answer begins, and all that is asked is in the memory."""

    kind: Literal["florence2"] = "florence2"
