"""A folder for bundles: on this machine, or on one that ssh reaches. All of it is done by a POSIX shell there."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import BinaryIO

from bundle.errors import MachineError, SettingsError

_REMOTE = re.compile(r"^(?P<login>[^/:]+):(?P<folder>.*)$", re.DOTALL)
_UNREACHED = 255
"""ssh's own exit code; any other is that of the command."""


@dataclass(frozen=True)
class Place:
    """Where bundles are put.

    Attributes:
        folder: There; relative to the home folder on another machine.
        login: `user@host`, or a name of ssh's configuration; None: this machine.
        ssh: The command that reaches it.
    """

    folder: str
    login: str | None = None
    ssh: tuple[str, ...] = ("ssh",)

    def __str__(self) -> str:
        """Return it as it was written."""
        return self.folder if self.login is None else f"{self.login}:{self.folder}"

    def run(self, script: str, stdin: BinaryIO | None = None) -> str:
        """Run a script in the folder and return what it prints.

        Args:
            script: Of a POSIX shell; ends at its first command that fails.
            stdin: What it reads, from where the file stands.

        Raises:
            MachineError: The machine cannot be reached, or a command failed; the message is its own.
        """
        whole = f"set -eu; cd -- {shlex.quote(self.folder)}; {script}"
        return self._run(whole, stdin)

    def make(self) -> None:
        """Make the folder where there is none.

        Raises:
            MachineError: It cannot be made.
        """
        self._run(f"mkdir -p -- {shlex.quote(self.folder)}", None)

    def _run(self, script: str, stdin: BinaryIO | None) -> str:
        command = (
            ["sh", "-c", script] if self.login is None else [*self.ssh, self.login, f"sh -c {shlex.quote(script)}"]
        )
        try:
            done = subprocess.run(
                command,
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise MachineError(
                f"{command[0]} cannot be run: {error.strerror}. Install it, or name it with --ssh"
            ) from error
        if done.returncode == 0:
            return done.stdout
        said = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}, and nothing said")
        if self.login is not None and done.returncode == _UNREACHED:
            attempt = shlex.join([*self.ssh, self.login, "true"])
            raise MachineError(
                f"{self.login} cannot be reached, or was lost: {said}. Try: {attempt}. What has arrived stays there: "
                "the same command goes on from it"
            )
        raise MachineError(f"{self}: {said}")


def read_place(text: str, ssh: str = "ssh") -> Place:
    """Return the place that a command line names, as scp reads it: a colon before any slash means another machine.

    Raises:
        SettingsError: It names none.
    """
    command = tuple(shlex.split(ssh))
    if not command:
        raise SettingsError("--ssh is empty; give a command such as 'ssh -p 2222'")
    if not text or not text.isprintable():
        raise SettingsError(f"{text!r} is no place for bundles; name a folder, or user@host:/folder")
    remote = _REMOTE.match(text)
    if remote is None:
        return Place(text)
    login, folder = remote["login"], remote["folder"].removeprefix("~/")  # where a login's shell begins anyway
    if login.startswith("-") or not folder:
        raise SettingsError(f"{text!r} is no place for bundles; write user@host:/folder, or ./{text} for a folder here")
    return Place(folder, login, command)
