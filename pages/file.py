"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it into that; its folder is made if absent.

    A link is followed, and what is no file, such as /dev/null, is written as it is.

    Raises:
        OSError: It cannot be written; its `filename` is `path`, and what stood there before stands there.
    """
    try:
        final = path.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not final.is_file():
            final.write_bytes(content)
        else:
            _replace(final, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(final: Path, content: bytes) -> None:
    descriptor, aside = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, final)
    except BaseException:
        os.unlink(aside)
        raise


def _umask() -> int:
    """Return the bits that the process takes from new files; there is no way to ask without setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
