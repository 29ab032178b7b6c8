"""Methods that drop image tokens inside the decoder, by the name that a request gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bundle.directory import Bundle
from bundle.errors import ParameterError
from bundle.visual_exit import VISUAL_EXIT, Router, load_routers
from quant.visual_tokens.inside.aim_pruning import AimPruning
from quant.visual_tokens.inside.dyvte import DyVTE
from quant.visual_tokens.inside.fastv import FastV
from runtime.segmented_prompt import Choose

METHODS: Mapping[str, Callable[[float, Mapping[int, Router]], Choose]] = {
    "fastv": lambda keep, routers: FastV(keep),
    "aim-pruning": lambda keep, routers: AimPruning(keep),
    "dyvte": DyVTE,
}
"""Name to what makes a choice of `keep` and the bundle's routers."""
_TRAINED = ("dyvte",)


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
            keep: In (0, 1).

        Raises:
            ParameterError: The bundle lacks what the method needs.
        """
        if not self._has_segments:
            raise ParameterError(
                f"vision.method {method!r} drops image tokens inside the decoder, and {self._name} was not exported in "
                "segments: pocketvlm export CHECKPOINT -o BUNDLE --decoder-segments LAYERS",
                "vision.method",
            )
        if method in _TRAINED and not self._routers:
            raise ParameterError(
                f"vision.method {method!r} needs routers that were trained for its model, and {self._name} has none: "
                f"train them with python -m reference.train_exit, put {VISUAL_EXIT} beside the checkpoint's weights, "
                "and export it again",
                "vision.method",
            )
        return METHODS[method](keep, self._routers)
