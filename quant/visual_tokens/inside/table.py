"""Methods that drop image tokens inside the decoder, by the name that a request gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

from bundle.directory import Bundle
from bundle.errors import ParameterError
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


class InsideMethods:
    """What a bundle can drop inside its decoder.

    Args:
        bundle: Opened.

    Raises:
        BundleFileError: Its routers are unusable.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._name = manifest.name
        self._has_segments = bool(manifest.segments)
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
        if not self._has_segments:
            raise ParameterError(
                f"vision.method {method!r} drops image tokens inside the decoder, and {self._name} was not exported in "
                "segments: pocketvlm export CHECKPOINT -o BUNDLE --decoder-segments LAYERS",
                "vision.method",
            )
        if not 0 < keep <= 1:  # not a number is refused as well
            raise ParameterError(f"vision.keep is {keep}; it must be above 0 and at most 1", "vision.keep")
        if METHODS[method].is_trained and not self._routers:
            raise ParameterError(
                f"vision.method {method!r} needs routers that were trained for its model, and {self._name} has none: "
                f"train them with python -m reference.train_exit, put {VISUAL_EXIT} beside the checkpoint's weights, "
                "and export it again",
                "vision.method",
            )
        return METHODS[method].choose(keep, self._routers)
