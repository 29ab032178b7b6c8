"""Places to write: folders, and hidden ones beside what is being written, which go with their process or the next."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bundle.errors import MachineError

NEW = "new"
"""In a scratch folder: what is being written."""
OLD = "old"
"""What stood where it goes, while the two are exchanged."""
_RANDOM = re.compile(r"[a-z0-9_]{8}")
"""What `tempfile.mkdtemp` puts behind a prefix."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""What numpy says, without a number, where a file took only a part of an array."""


@contextmanager
def scratch_beside(final: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `final` that holds an empty folder `NEW`, and remove it with the block.

    It is locked as long as this process lives, however that ends, so that others know it for abandoned after that.

    Raises:
        OSError: The folder cannot be made.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        with _try_locked(scratch):
            (scratch / NEW).mkdir()
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_abandoned(final: Path) -> None:
    """Remove the scratch folders of `final` whose processes were killed, as far as they can be removed.

    Where one was killed between two renames, what stood at `final` stands there again.
    """
    for path in _scratch_folders(final):
        with suppress(OSError), _try_locked(path) as is_ours:
            if is_ours and (path / OLD).exists() and not final.exists():
                (path / OLD).rename(final)
            if is_ours:
                shutil.rmtree(path)


def try_lack_of_room(error: OSError) -> str | None:
    """Return why there is no room for what was to be written, in words; None where that was not the reason."""
    if error.errno in _FULL:
        return error.strerror
    if error.errno is None and _SHORT_WRITE.search(str(error)):
        return "the disk is full, or a limit on the size of files was met"
    return None


def reason_of(error: OSError) -> str:
    """Return why a place cannot be written, in words."""
    if isinstance(error, FileExistsError):  # what `mkdir` says of a file in the place of a folder
        return os.strerror(errno.ENOTDIR)
    return error.strerror or str(error)


def made_folder(folder: Path, option: str) -> Path:
    """Return a folder to write into, made if absent.

    Args:
        folder: As given.
        option: What it was given with.

    Raises:
        MachineError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {reason_of(error)}. Choose another {option}.") from error
    return folder


@contextmanager
def _try_locked(folder: Path) -> Iterator[bool]:
    """Yield whether a folder's lock could be had, which is held during the block; some file systems know none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


def _scratch_folders(final: Path) -> list[Path]:
    """Return the folders beside `final` that are named as ours and hold what ours hold: the name may be anybody's."""
    prefix = f".{final.name}."
    try:
        named = [path for path in final.parent.iterdir() if path.name.startswith(prefix)]
        return [path for path in named if _RANDOM.fullmatch(path.name.removeprefix(prefix)) and _holds_ours(path)]
    except OSError:
        return []


def _holds_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return bool(names) and names <= {NEW, OLD}
