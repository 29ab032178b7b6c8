"""What the systems run: checkpoints with random weights of real sizes, and what each system makes of them.

Everything is made when it is first needed and kept under the cache folder. Random weights do for speed; nothing here
says anything of quality.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from bundle.errors import MachineError, SettingsError
from loadtests.peers.environments import Say, run_in
from loadtests.peers.process import CHECKOUT, OWN_PYTHON

_CHECKPOINTS = CHECKOUT / "tests" / "checkpoints.py"
_VLM, _SIGLIP, _CLIP = "smolvlm-256m", "siglip-b16", "clip-b32"

_BUNDLES = "pocketvlm-"
"""What the folders of bundles are called, before the digest of the code that wrote them."""
_WRITERS = ("bundle", "export", "graphs", "quant")

_EXPORTED = {
    "fp32": (_VLM, ()),
    "portable": (_VLM, ("--dialect", "portable")),
    "siglip-fp32": (_SIGLIP, ()),
    "siglip-portable": (_SIGLIP, ("--dialect", "portable")),
    "clip-fp32": (_CLIP, ()),
}
"""Bundle -> checkpoint and options of `pocketvlm export`."""

_QUANTIZED = {
    "int8": ("fp32", ("--weights", "int8-rtn")),
    "int8-static-tower": ("fp32", ("--weights", "int8-rtn,vision_encoder=int8-static")),
    "int4": ("fp32", ("--weights", "int4-rtn")),
    "int4-dual": ("fp32", ("--weights", "int4-rtn", "--profile", "dual")),
    "int4-dual-kv8": ("fp32", ("--weights", "int4-rtn", "--profile", "dual", "--kv-cache", "int8")),
    "ternary": ("fp32", ("--weights", "ternary")),
    "siglip-int8": ("siglip-fp32", ("--weights", "int8-rtn")),
    "clip-int8": ("clip-fp32", ("--weights", "int8-rtn")),
}
"""Bundle -> parent and options of `pocketvlm quantize`: rounded to nearest.

Calibrated names take longer on a real decoder: docs/decisions/0011-loud-channels.md.
"""


class Models:
    """Checkpoints and bundles in a folder.

    Args:
        folder: Where they are kept.
        say: Told what is made.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self._folder = folder
        self._say = say

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file or folder, made by the given function where it is not there yet.

        Args:
            name: Under the folder of models, perhaps with a folder of its own.
            make: Writes it at the path that it is given; it appears under its name when it is whole.
        """
        path = self._folder / name
        if not path.exists():
            self._say(f"making {name}")
            unfinished = path.with_name(f".{path.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            make(unfinished)
            unfinished.rename(path)
        return path

    def checkpoint(self, preset: str = _VLM) -> Path:
        """Return a checkpoint of a real model's sizes: SmolVLM-256M's by default.

        Raises:
            SettingsError: This is no checkout: the tests' checkpoints are not in the package.
        """
        if not _CHECKPOINTS.is_file():
            raise SettingsError(f"{_CHECKPOINTS} makes the models that are compared: run this in a checkout")
        options = ["--preset", preset, "--one-tile"]
        return self.made(preset, lambda path: _call(_CHECKPOINTS, [str(path), *options]))

    @property
    def siglip(self) -> Path:
        """Return a checkpoint of SigLIP-B/16's sizes at 224 px."""
        return self.checkpoint(_SIGLIP)

    @property
    def clip(self) -> Path:
        """Return a checkpoint of CLIP-B/32's sizes."""
        return self.checkpoint(_CLIP)

    def bundle(self, name: str) -> Path:
        """Return a bundle of ours, written by the code as it is now."""
        place = f"{_BUNDLES}{self._writers}/{name}"
        if name in _EXPORTED:
            preset, options = _EXPORTED[name]
            return self.made(place, lambda path: _pocketvlm("export", self.checkpoint(preset), path, options))
        parent, options = _QUANTIZED[name]
        return self.made(
            place, lambda path: _pocketvlm("quantize", self.bundle(parent), path, (*options, "--no-evaluate"))
        )

    @cached_property
    def _writers(self) -> str:
        """What tells bundles of this code from those of other code, which are removed: they are gigabytes."""
        found = writers_digest()
        for folder in self._folder.glob(f"{_BUNDLES}*"):
            if folder.name != f"{_BUNDLES}{found}":
                self._say(f"removing {folder.name}: other code wrote it")
                shutil.rmtree(folder)
        return found


def writers_digest() -> str:
    """Return a digest of the code that writes bundles."""
    digest = hashlib.sha256()
    for file in sorted(file for package in _WRITERS for file in (CHECKOUT / package).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _call(script: Path, arguments: Sequence[str]) -> None:
    told = subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True)
    if told.returncode != 0:
        raise MachineError(f"{script} failed: {told.stderr.strip()[-2000:]}")


def _pocketvlm(command: str, source: Path, output: Path, options: Sequence[str]) -> None:
    arguments = [command, str(source), "-o", str(output), *options]
    run_in(OWN_PYTHON, "pocketvlm", arguments, output.name.removeprefix("."))
