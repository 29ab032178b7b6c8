"""Adapters that one decoder holds side by side, of which every sequence runs through one."""

from __future__ import annotations

from typing import Literal

from bundle.fields import Frozen, Text

InputType = Literal["query", "document"]
"""What an input is to those that it is compared with, where a model writes the two differently."""
BASE = "base"
"""What the weights without any adapter are called, where they may be asked for."""


class AdapterDims(Frozen):
    """One adapter of several in a decoder.

    Attributes:
        name: By which a request chooses it.
        prefixes: What it wants before the first text of an input of a type; None: what the model wants.
    """

    name: Text
    prefixes: dict[InputType, Text] | None = None
