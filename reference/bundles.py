"""The shipped checkpoints as bundles: which there are, and where a machine keeps its exports of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bundle.directory import read_manifest
from bundle.errors import BundleError
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint

_HERE = Path(__file__).resolve().parent
CHECKPOINTS = {"vlm": _HERE / "checkpoints" / "vlm", "clip": _HERE / "checkpoints" / "clip"}
"""Name -> Hugging Face folder of what a demo serves; the served id is `pocketvlm-` and the name."""
SHIPPED = {
    **CHECKPOINTS,
    "vlm-ternary": _HERE / "checkpoints" / "vlm-ternary",
    "vlm-mote": _HERE / "checkpoints" / "vlm-mote",
}
"""Name -> folder of every checkpoint whose bundles are measured on held-out scenes."""


def checkpoint_digest(name: str) -> str:
    """Return the digest that a bundle made of this checkpoint records as `source_sha256`."""
    return Checkpoint.open(SHIPPED[name]).digest()


def reference_name(bundle: Path) -> str | None:
    """Return which shipped checkpoint a bundle was made of, or None for any other model.

    Raises:
        BundleFormatError: The folder is not a bundle.
    """
    digest = read_manifest(bundle).source_sha256
    return next((name for name in SHIPPED if checkpoint_digest(name) == digest), None)


def is_current(bundle: Path, name: str) -> bool:
    """Say whether `bundle` exists and was made of the checkpoint as shipped now."""
    try:
        return reference_name(bundle) == name
    except BundleError:
        return False


def cache_folder() -> Path:
    """Return where exports of the shipped checkpoints are kept: $XDG_CACHE_HOME/pocketvlm, or ~/.cache/pocketvlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketvlm"


def reference_bundles(folder: Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Return the bundles of the shipped checkpoints in `folder`, exporting those that are absent or outdated."""
    bundles = [folder / name for name in CHECKPOINTS]
    for bundle, (name, checkpoint) in zip(bundles, CHECKPOINTS.items(), strict=True):
        if not is_current(bundle, name):
            export_checkpoint(
                checkpoint, bundle, name=f"pocketvlm-{name}", overwrite=bundle.exists(), progress=progress
            )
    return bundles
