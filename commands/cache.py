"""Where commands keep what can be made again, and what to do where it cannot be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.errors import BundleError, MachineError
from bundle.scratch import try_lack_of_room


@contextmanager
def kept_in(folder: Path) -> Iterator[Path]:
    """Yield a folder of the cache, made if absent; nobody named it, so who meets an error is told how to name another.

    Raises:
        MachineError: The folder cannot be made, or something cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except (BundleError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        reason = try_lack_of_room(cause) or cause.strerror or str(cause)
        raise MachineError(
            f"the models that come with PocketVLM are kept in {folder}, which cannot be written: {reason}. Set "
            "XDG_CACHE_HOME to a folder that can be, or name the bundles to serve."
        ) from error
