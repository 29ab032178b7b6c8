"""Reducers by name, and what each of them needs. To add one: a file here with a `reduce`, and an entry below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from bundle.errors import ParameterError
from quant.visual_tokens.inside.table import METHODS as INSIDE

if TYPE_CHECKING:
    from quant.visual_tokens.tile import Reducer

FIELD = "vision.method"
"""Of a request, for errors."""


@dataclass(frozen=True)
class MethodEntry:
    """What is known of a reducer before its module is imported.

    Attributes:
        target: "module:function".
        told: What it does, in a line.
        needs_tower: It reads the vision tower's attention, which a bundle's graph has to give.
        needs_text: It reads the embeddings of the text that goes with an image.
    """

    target: str
    told: str
    needs_tower: bool = False
    needs_text: bool = False


METHODS: dict[str, MethodEntry] = {
    "random": MethodEntry("quant.visual_tokens.random:reduce", "drawn by lot"),
    "uniform": MethodEntry("quant.visual_tokens.uniform:reduce", "spread evenly over the grid"),
    "pooling": MethodEntry("quant.visual_tokens.pooling:reduce", "means of neighbours"),
    "dart": MethodEntry("quant.visual_tokens.dart:reduce", "pivots, and what is least like them", needs_text=True),
    "clustering": MethodEntry("quant.visual_tokens.clustering:reduce", "means of k-means clusters"),
    "merging": MethodEntry("quant.visual_tokens.merging:reduce", "likes merged, round after round (AIM)"),
    "visionzip": MethodEntry(
        "quant.visual_tokens.visionzip:reduce", "most attended, and some for the rest", needs_tower=True
    ),
    "fastervlm": MethodEntry("quant.visual_tokens.fastervlm:reduce", "most attended", needs_tower=True),
    "textmonkey": MethodEntry("quant.visual_tokens.textmonkey:reduce", "like no other token"),
    "dpc-knn": MethodEntry("quant.visual_tokens.dpc_knn:reduce", "means around density peaks (Chat-UniVi)"),
}

RESIZE = "resize"
"""Images that are encoded smaller, `quant.visual_tokens.resize`: no choice among tokens, so no reducer of the table."""
SKIPPING = "ima"
"""Layers that image tokens skip, `quant.visual_tokens.skipping`: they are all read."""

_NAMES = ", ".join(METHODS)


def entry_of(name: str) -> MethodEntry:
    """Return what is known of a reducer.

    Raises:
        ParameterError: None has that name.
    """
    if name in INSIDE:
        raise ParameterError(f"{FIELD} {name!r} drops tokens inside the decoder; before it there are {_NAMES}", FIELD)
    if name not in METHODS:
        known = ", ".join((*METHODS, RESIZE, *INSIDE, SKIPPING))
        raise ParameterError(f"{FIELD} {name!r} is unknown; it must be one of {known}", FIELD)
    return METHODS[name]


def check_keep(keep: float) -> None:
    """Check a share.

    Raises:
        ParameterError: It is none.
    """
    if not 0 < keep <= 1:  # not a number is refused as well
        raise ParameterError(f"vision.keep is {keep}; it must be above 0 and at most 1", "vision.keep")


def load_reducer(name: str) -> Reducer:
    """Return a reducer.

    Raises:
        ParameterError: None has that name.
    """
    module, attribute = entry_of(name).target.split(":")
    found: Reducer = getattr(import_module(module), attribute)
    return found
