"""Adapters that one decoder holds side by side, of which every sequence runs through one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bundle.fields import MOST_NAME_CHARACTERS, Frozen, Text, check_text

InputType = Literal["query", "document"]
"""What an input is to those that it is compared with, where a model writes the two differently."""
BASE = "base"
"""What the weights without any adapter are called, where they may be asked for."""
_KINDS: Mapping[str, InputType] = MappingProxyType({"query": "query", "passage": "document", "document": "document"})
"""What stands behind a task, and what it says of the inputs."""


def split_task(task: str) -> tuple[str, InputType | None]:
    """Return the adapter's name and what the inputs are, of a task as Jina's clients write it: "retrieval.query"."""
    name, _, kind = task.rpartition(".")
    return (name, _KINDS[kind]) if name and kind in _KINDS else (task, None)


class AnswerAdapter(Frozen):
    """One adapter of several in a decoder that answers, which a request chooses as a model.

    Attributes:
        name: By which it does.
        rank: Of its largest change.
        num_layers: Linear layers that it changes.
        changes_vision: Some of them are the vision encoder's, so that it sees images otherwise than the others do.
    """

    name: Annotated[str, AfterValidator(check_text), Field(min_length=1, max_length=MOST_NAME_CHARACTERS)]
    rank: int = Field(gt=0, le=1 << 16)
    num_layers: int = Field(gt=0, le=1 << 20)
    changes_vision: bool = False


class AdapterDims(Frozen):
    """One adapter of several in a decoder that embeds.

    Attributes:
        name: By which a request chooses it.
        prefixes: What it wants before the first text of an input of a type; None: what the model wants.
    """

    name: Text
    prefixes: dict[InputType, Text] | None = None
