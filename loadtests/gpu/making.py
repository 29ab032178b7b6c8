"""The bundles that the GPU benchmark runs: random weights of a real model's sizes, and the shipped model."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bundle.errors import MachineError
from loadtests.gpu.found import Found, tell
from loadtests.gpu.sizes import Sizes

_SOURCE = Path(__file__).resolve().parents[2]
_VARIANTS = {
    "fp16-cuda": ("fp16", "cuda"),
    "int8-cuda": ("int8-rtn", "cuda"),
    "int4-cuda": ("int4-rtn", "cuda"),
    "int8-cpu": ("int8-rtn", "cpu"),
}
"""Folder -> weights and target. The last is what `--tiny` runs on a CPU."""


def make_checkpoint(folder: Path, sizes: Sizes) -> Path:
    """Return a random checkpoint, written where it is not there yet.

    Raises:
        MachineError: It could not be written.
    """
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "config.json").exists():
        script = str(_SOURCE / "tests" / "checkpoints.py")
        _run([sys.executable, script, str(checkpoint), "--one-tile", "--preset", sizes.preset])
    return checkpoint


def make_bundles(folder: Path, sizes: Sizes, variants: tuple[str, ...]) -> None:
    """Write the fp32 bundle and variants of the random checkpoint, and of the shipped model, side by side."""
    started_s = time.perf_counter()
    parents = {"random": make_checkpoint(folder, sizes), "shipped": _SOURCE / "reference" / "checkpoints" / "vlm"}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: _make_family(folder / item[0], item[1], variants), parents.items()))
    tell(folder, Found("bundles made", "all", time.perf_counter() - started_s, "s"))


def _make_family(folder: Path, checkpoint: Path, variants: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    parent = folder / "fp32"
    if not parent.exists():
        _ours("export", str(checkpoint), "-o", str(parent), "--name", f"{folder.name}-fp32")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _make_variant(folder, name), variants))


def _make_variant(folder: Path, name: str) -> None:
    if (folder / name).exists():
        return
    weights, target = _VARIANTS[name]
    options = ["--weights", weights, "--target", target, "--no-evaluate", "--no-tune"]
    try:
        _ours("quantize", str(folder / "fp32"), "-o", str(folder / name), *options)
    except MachineError as error:
        tell(folder.parent, Found("made", f"{folder.name} {name}", None, note=str(error)))


def _ours(*arguments: str) -> None:
    _run([sys.executable, str(_SOURCE / "pocketvlm.py"), *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=_SOURCE, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise MachineError(f"{' '.join(command[1:4])} ended with code {done.returncode}: {' '.join(said[-3:])[:400]}")
