"""Image files of a folder, and what changed among them since an index was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import SettingsError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Stamp:
    """By what a file is known to be as it was.

    Attributes:
        size_bytes: Of the file.
        changed_ns: When it was written last.
        sha256: Of what it holds.
    """

    size_bytes: int
    changed_ns: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> tuple[Stamp, bytes]:
        """Return a file's stamp and what it holds; one that is written meanwhile seems changed afterwards.

        Raises:
            OSError: It cannot be read.
        """
        changed_ns = path.stat().st_mtime_ns  # before it is read
        data = path.read_bytes()
        return cls(len(data), changed_ns, hashlib.sha256(data).hexdigest()), data

    def is_of(self, path: Path) -> bool:
        """Say whether a file seems unchanged, without reading it."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.changed_ns)


def images_of(folder: Path, inside: Path | None = None) -> Iterator[str]:
    """Yield the image files of a folder and its folders, by name, relative to it, in order; hidden ones left out.

    Args:
        folder: Searched.
        inside: A folder that is passed over: an index may lie among its images.

    Raises:
        SettingsError: There is no such folder.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder; name one that holds images")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden and inside not in path.parents:
            yield name.as_posix()


@dataclass(frozen=True)
class Changes:
    """What an update has to do.

    Attributes:
        kept: Names whose files are as they were.
        read: Names of new files, and of those that may have changed.
        gone: Names that are no longer there.
    """

    kept: tuple[str, ...]
    read: tuple[str, ...]
    gone: tuple[str, ...]


def changes_of(folder: Path, known: Mapping[str, Stamp], inside: Path | None = None) -> Changes:
    """Return what changed in a folder since files were stamped.

    Raises:
        SettingsError: There is no such folder.
    """
    names = list(images_of(folder, inside))
    kept = tuple(name for name in names if name in known and known[name].is_of(folder / name))
    read = tuple(name for name in names if name not in set(kept))
    return Changes(kept, read, tuple(name for name in known if name not in set(names)))
