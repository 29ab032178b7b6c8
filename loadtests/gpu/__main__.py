"""The GPU benchmark: `python -m loadtests.gpu FOLDER`; everything is made in the folder, the table is printed last.

Each section runs in a process of its own with a limit of its own, in the order of what is most worth knowing, and
writes each figure as it comes: a fault or a hang loses its own section and no other.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from bundle.errors import PocketVLMError
from loadtests.gpu.agreement import measure_agreement
from loadtests.gpu.found import Found, facts, read_found, table, tell
from loadtests.gpu.making import make_bundles
from loadtests.gpu.ours import measure_answers, measure_decoder, measure_tiles
from loadtests.gpu.peer import measure_compiled, measure_eager
from loadtests.gpu.sizes import FULL, TINY, Sizes
from loadtests.gpu.where import measure_where
from runtime.settings import Provider

Work = Callable[[Path, Sizes, Provider], None]
_TABLE_WIDTH = 200
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        work: What it does.
        limit_s: Its process is ended after so long.
    """

    work: Work
    limit_s: float


def _ours(measure: Callable[..., None], family: str, name: str) -> Work:
    return lambda folder, sizes, provider: measure(folder, family, name, sizes, provider)


def _making(folder: Path, sizes: Sizes, provider: Provider, variants: tuple[str, ...]) -> None:
    make_bundles(folder, sizes, variants)


SECTIONS: Mapping[str, Section] = {
    "where": Section(measure_where, 40),
    "make-fp16": Section(partial(_making, variants=("fp16-cuda",)), 240),
    "decode-fp16": Section(_ours(measure_decoder, "random", "fp16-cuda"), 75),
    "agree-shipped": Section(_ours(measure_agreement, "shipped", "fp16-cuda"), 40),
    "vision-fp16": Section(_ours(measure_tiles, "random", "fp16-cuda"), 60),
    "engine-fp16": Section(_ours(measure_answers, "random", "fp16-cuda"), 75),
    "agree-random": Section(_ours(measure_agreement, "random", "fp16-cuda"), 60),
    "make-rest": Section(partial(_making, variants=("int8-cuda", "int4-cuda")), 240),
    "decode-int4": Section(_ours(measure_decoder, "random", "int4-cuda"), 60),
    "agree-int4": Section(_ours(measure_agreement, "random", "int4-cuda"), 40),
    "decode-int8": Section(_ours(measure_decoder, "random", "int8-cuda"), 60),
    "engine-int4": Section(_ours(measure_answers, "random", "int4-cuda"), 60),
    "agree-int8": Section(_ours(measure_agreement, "random", "int8-cuda"), 40),
    "eager": Section(measure_eager, 90),
    "compiled": Section(measure_compiled, 240),
    "make-cpu": Section(partial(_making, variants=("int8-cpu",)), 120),
    "engine-cpu": Section(_ours(measure_answers, "random", "int8-cpu"), 60),
}
"""In this order; the last two are for a dry run on a CPU and are run when named."""
_BY_DEFAULT = tuple(name for name in SECTIONS if not name.endswith("-cpu"))


def run_sections(folder: Path, names: Sequence[str], options: Sequence[str], budget_s: float) -> None:
    """Run sections one after another, each in a process of its own, while the budget lasts."""
    end_s = time.monotonic() + budget_s
    for name in names:
        left_s = end_s - time.monotonic()
        if left_s <= 1:
            tell(folder, Found(name, "sections", None, note=f"not begun: the budget of {budget_s:.0f} s is spent"))
            continue
        started_s = time.monotonic()
        fault = _run_apart(folder, name, options, min(SECTIONS[name].limit_s, left_s))
        tell(folder, Found(name, "sections", None if fault else time.monotonic() - started_s, "s", fault))


def _run_apart(folder: Path, name: str, options: Sequence[str], limit_s: float) -> str:
    """Run one section in a process of its own; return what went wrong, or nothing."""
    command = [sys.executable, "-m", "loadtests.gpu", str(folder), "--only", name, *options]
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"ended after {limit_s:.0f} s{_left(process)}"
    last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
    return "" if code == 0 else f"code {code}: {' '.join(last)[:600]}"


def _left(process: subprocess.Popen[bytes]) -> str:
    """Return what is to be said of a process that was killed: one that waits for a driver stays."""
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f", and process {process.pid} waits in the kernel still: what comes after shares the device with it"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    folder, sizes = options.folder.resolve(), TINY if options.tiny else FULL
    folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        return _work(options.only, folder, sizes, options.provider)
    passed = ["--provider", options.provider, *(["--tiny"] if options.tiny else [])]
    with suppress(KeyboardInterrupt):  # what was found is told whoever ended it
        run_sections(folder, options.sections or _BY_DEFAULT, passed, options.budget_s)
    found = read_found(folder)
    Console(width=_TABLE_WIDTH, highlight=False).print(table(found), *facts(found), sep="\n", markup=False)
    return 0


def _work(name: str, folder: Path, sizes: Sizes, provider: Provider) -> int:
    try:
        SECTIONS[name].work(folder, sizes, provider)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu",
        description="Our variants for a GPU beside transformers, on random weights of SmolVLM-256M's sizes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="for bundles, logs and results.jsonl; what is there is not made anew")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="where graphs run")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a dry run")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="what to run, in this order; default: all")
    parser.add_argument("--budget-s", type=float, default=460.0, help="no section runs after so long, seconds")
    parser.add_argument("--only", choices=SECTIONS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
