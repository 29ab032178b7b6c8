"""Environments of peers: each has packages of its own, pinned, installed when it is first needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import MachineError
from loadtests.peers.process import OWN_PYTHON, environment

Say = Callable[[str], None]
"""Tells what is being done."""

_MARK = "installed.txt"
"""Lists what is installed: written last, so that an environment that was cut short is made anew."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment beside ours.

    Attributes:
        name: Its folder; empty for the environment that runs the comparison.
        steps: Requirements, exact, of each call of pip: what must not be replaced by later ones comes first.
        sees_ours: What is not installed in it is taken from the environment that runs the comparison.
        without: Packages that pip brings with them and that must not run: telemetry.
    """

    name: str
    steps: tuple[tuple[str, ...], ...] = ()
    sees_ours: bool = False
    without: tuple[str, ...] = ()

    def python(self, folder: Path) -> str:
        """Return its interpreter, installed or not."""
        return str(folder / self.name / "bin" / "python") if self.name else OWN_PYTHON

    def install(self, folder: Path, say: Say) -> None:
        """Install it where it is missing or holds something else.

        Raises:
            MachineError: pip failed.
        """
        mark = folder / self.name / _MARK
        wanted = "\n".join(package for step in self.steps for package in step) + "\n"
        if not self.name:
            return
        if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
            if self.sees_ours:
                self._look_at_ours(mark.parent)  # ours may lie elsewhere than the one that installed it
            return
        say(f"installing {self.name}: {', '.join(wanted.split())}")
        shutil.rmtree(mark.parent, ignore_errors=True)
        self._call([sys.executable, "-m", "venv", str(mark.parent)])
        if self.sees_ours:
            self._look_at_ours(mark.parent)
        for step in self.steps:
            self._call([self.python(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
        if self.without:
            self._call([self.python(folder), "-m", "pip", "uninstall", "--quiet", "--yes", *self.without])
        mark.write_text(wanted, encoding="utf-8")

    def _look_at_ours(self, home: Path) -> None:
        [packages] = home.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def _call(self, command: Sequence[str]) -> None:
        told = subprocess.run(command, check=False, capture_output=True, text=True)
        if told.returncode != 0:
            raise MachineError(f"{self.name} cannot be installed: {told.stderr.strip()[-2000:]}")


def run_in(python: str, module: str, arguments: Sequence[str], what: str) -> None:
    """Run a module in an environment, to make something.

    Raises:
        MachineError: It failed.
    """
    told = subprocess.run(
        [python, "-m", module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment(os.cpu_count() or 1),
    )
    if told.returncode != 0:
        raise MachineError(f"{what} cannot be made: {told.stderr.strip()[-2000:]}")
