"""The adapters of one model that answers: by number where a decoder runs, and by number where images are seen."""

from __future__ import annotations

from bundle.manifest import Manifest
from bundle.question import Asked


class Adapters:
    """What one model does of adapters that requests choose.

    Args:
        manifest: Of its bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def number(self, name: str) -> int:
        """Return the number of an adapter in the graphs; 0 of none.

        Raises:
            ModelNotFoundError: The model has none of that name.
        """
        return self._manifest.adapter_number(name)

    def seen_through(self, name: str) -> Asked | None:
        """Return what the vision encoder is told beside an image, as of a question; None: it sees without an adapter.

        Adapters that leave the vision encoder as it is share features of images with the model, and one another.

        Raises:
            ModelNotFoundError: The model has none of that name.
        """
        number = self.number(name)
        held = () if self._manifest.decoder is None else self._manifest.decoder.adapters
        return (number,) if number and held[number - 1].changes_vision else None
