"""Git LFS pointers: a few lines of text in place of a large file, where a repository was cloned without git-lfs."""

from __future__ import annotations

from pathlib import Path

from bundle.errors import CheckpointError

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def require_content(path: Path) -> None:
    """Check that a file is what its name says, and not a pointer to it; what cannot be opened is another's to tell.

    Raises:
        CheckpointError: It is a pointer.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_BEGINNING))
    except OSError:
        return
    if beginning == _BEGINNING:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself: the checkpoint was cloned without git-lfs. Run "
            f"git lfs install, then git lfs pull in {path.parent}, or download the checkpoint again."
        )
