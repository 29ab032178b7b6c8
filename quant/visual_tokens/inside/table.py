"""Methods that drop image tokens inside the decoder, by the name that a request gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

from bundle.directory import Bundle
from bundle.errors import ParameterError
from bundle.manifest import Manifest
from bundle.visual_exit import VISUAL_EXIT, Router, load_routers
from quant.visual_tokens.inside.aim_pruning import AimPruning
from quant.visual_tokens.inside.dyvte import DyVTE
from quant.visual_tokens.inside.fastv import FastV
from runtime.segmented_prompt import Choose

MERGING = "merging"
"""Of `quant.visual_tokens.table`: AIM's first half, which is done before the decoder."""


@dataclass(frozen=True)
class InsideMethod:
    """What is known of a method.

    Attributes:
        choose: What makes a choice of `keep` and the bundle's routers.
        is_trained: It needs routers.
        merged_before: Share of the tokens that is left before the decoder, by `keep`.
    """

    choose: Callable[[float, Mapping[int, Router]], Choose]
    is_trained: bool = False
    merged_before: Callable[[float], float] = lambda keep: 1.0


METHODS: Mapping[str, InsideMethod] = {
    "fastv": InsideMethod(lambda keep, routers: FastV(keep)),
    "aim-pruning": InsideMethod(lambda keep, routers: AimPruning(keep)),
    "aim": InsideMethod(lambda keep, routers: AimPruning(sqrt(keep)), merged_before=sqrt),
    "dyvte": InsideMethod(DyVTE, is_trained=True),
}
"""AIM's halves share what is dropped: merging leaves the root of `keep`, and pruning as much of that."""


def missing(method: str, manifest: Manifest) -> str:
    """Return what a bundle lacks for a method, and what to do about it; empty where it lacks nothing.

    Args:
        method: A name in `METHODS`.
        manifest: Of the bundle.
    """
    if not manifest.segments:
        return (
            f"drops image tokens inside the decoder, and {manifest.name} was not exported in segments: "
            "pocketvlm export CHECKPOINT -o BUNDLE --decoder-segments LAYERS"
        )
    if METHODS[method].is_trained and VISUAL_EXIT not in manifest.files:
        return (
            f"needs routers that were trained for its model, and {manifest.name} has none: train them with "
            f"python -m reference.train_exit, put {VISUAL_EXIT} beside the checkpoint's weights, and export it again"
        )
    return ""


class InsideMethods:
    """What a bundle can drop inside its decoder.

    Args:
        bundle: Opened.

    Raises:
        BundleFileError: Its routers are unusable.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = manifest = bundle.manifest
        self._routers: Mapping[int, Router] = {}
        if VISUAL_EXIT in manifest.files and manifest.decoder is not None:
            self._routers = load_routers(bundle.path(VISUAL_EXIT), manifest.decoder.hidden_size)

    def choice(self, method: str, keep: float) -> Choose:
        """Return what chooses image tokens at each cut.

        Args:
            method: A name in `METHODS`.
            keep: Share that is kept, in (0, 1].

        Raises:
            ParameterError: No such share, or the bundle lacks what the method needs.
        """
        if reason := missing(method, self._manifest):
            raise ParameterError(f"vision.method {method!r} {reason}", "vision.method")
        if not 0 < keep <= 1:  # not a number is refused as well
            raise ParameterError(f"vision.keep is {keep}; it must be above 0 and at most 1", "vision.keep")
        return METHODS[method].choose(keep, self._routers)
