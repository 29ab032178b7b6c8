"""The shipped checkpoints: which there are, how a bundle of one is known, and where exports of them are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundle.directory import is_of_this_format, read_manifest
from bundle.errors import BundleError

_FOLDER = Path(__file__).resolve().parents[1] / "reference" / "checkpoints"
CHECKPOINTS = {name: _FOLDER / name for name in ("vlm-wide", "clip", "vlm")}
"""Name -> Hugging Face folder of the dense models; the served id is `pocketvlm-` and the name."""
SERVED = ("vlm-wide", "clip")
"""What a demo, and a server that is given no bundle, serves."""
SOURCE_SHA256 = {
    "vlm-wide": "8c9e6c88648ff7287365f52264b794cba9717fb067868c63aecc1642a9bcf1b8",
    "vlm": "c6d4516ee632de4d3183799961bd96a0a45b22dda7bc7878bd896719c2e432ef",
    "clip": "44bf058acf77001b3df0b8dd93ffd0e139c8d22d138e4f35418e4f53defe43bb",
    "vlm-ternary": "930e35d0c099910b8097b5983b2a75d946b2765c6360915912b7ede9e908f4a3",
    "vlm-mote": "4ff494937045fe40b6f27835509c510ec07a92e8a7d3826c698460548e95f8d7",
}
"""Name of every checkpoint whose bundles are measured on held-out scenes -> the digest that its bundles record.

It stands here so that the bundle of a stranger's model is known for one without reading any checkpoint.
"""

WHAT_TO_ASK = (
    "The shipped models are small and know drawings: coloured shapes, words in capitals, a handwritten digit. Ask in "
    'everyday English: "What color is the star?", "How many shapes are there?", "Is the circle left or right of the '
    'star?", "What does the text say?" or "Describe this picture."; how often each kind of answer is right stands in '
    "reference/checkpoints/README.md. Photographs and general knowledge are beyond them: they answer with shapes all "
    "the same. That is the model, not the server."
)
"""What a newcomer should know before typing the first question."""


def shipped_name(bundle: Path) -> str | None:
    """Return which shipped checkpoint a bundle was made of, or None for any other model.

    Raises:
        BundleFormatError: The folder is not a bundle.
    """
    digest = read_manifest(bundle).source_sha256
    return next((name for name, known in SOURCE_SHA256.items() if known == digest), None)


def is_current(bundle: Path, name: str) -> bool:
    """Say whether `bundle` exists, was made of the checkpoint as shipped now, and is of the format written now."""
    try:
        return shipped_name(bundle) == name and is_of_this_format(bundle)
    except BundleError:
        return False


def shipped_bundles(folder: Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Return the bundles of what is served in `folder`, exporting those that are absent or outdated."""
    bundles = [folder / name for name in SERVED]
    for bundle, name in zip(bundles, SERVED, strict=True):
        if not is_current(bundle, name):
            from export.exporter import export_checkpoint

            export_checkpoint(
                CHECKPOINTS[name], bundle, name=f"pocketvlm-{name}", overwrite=bundle.exists(), progress=progress
            )
    return bundles
