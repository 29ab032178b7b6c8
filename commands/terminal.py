"""How a subcommand speaks to whoever called it: results on stdout, everything else on stderr, and exit codes."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from bundle.manifest import Manifest

EXIT_FAILED = 1
EXIT_MISSED = 3

console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a result on stdout as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


class Stripped:
    """Writes pieces of one text on stdout at once, without the blanks that it begins and ends with."""

    def __init__(self) -> None:
        self._held = ""  # blanks that only words behind them would make part of the text
        self._has_begun = False

    def __call__(self, piece: str) -> None:
        """Write what is known to belong to the text."""
        text = self._held + piece if self._has_begun else piece.lstrip()
        words = text.rstrip()
        self._held = text[len(words) :]
        self._has_begun = self._has_begun or bool(words)
        sys.stdout.write(words)
        sys.stdout.flush()


def announce(line: str) -> None:
    """Write a line on stdout at once; a full disk under it stops no server."""
    with suppress(OSError):
        print(line, flush=True)


def progress(line: str) -> None:
    """Print a dim line on stderr, one line however long; where it cannot be written, the work goes on without it."""
    with suppress(OSError):
        progress_console.print(line, style="dim", markup=False, soft_wrap=True)


def tell_of_failed_gates(bundle: Path) -> None:
    """Print one dim line on stderr where a bundle that is about to answer failed its quality gate.

    Raises:
        BundleFormatError: The folder is not a bundle.
    """
    from bundle.directory import failed_gates, read_manifest

    if failed := failed_gates(read_manifest(bundle)):
        progress(f"{bundle} failed its quality gate ({failed}); it answers all the same")


def print_manifest(bundle: Path, manifest: Manifest) -> None:
    """Print on stdout what a bundle holds and costs."""
    from bundle.summary import summary

    for item in summary(bundle, manifest):
        console.print(item)
