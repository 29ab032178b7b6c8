"""How a call of the command ends: deliberate errors, missing packages and full disks are one line, and an exit code."""

from __future__ import annotations

import errno
import os
import sys

from rich.markup import escape

from bundle.errors import PocketVLMError, is_lack_of_memory
from bundle.extras import extra_of, install_line
from commands.app import app
from commands.terminal import EXIT_FAILED, progress_console

_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""A disk, a quota or a file that is full."""


def run() -> int:
    """Run the command line and return its exit code; what went wrong is told on stderr."""
    try:
        app(prog_name="pocketvlm")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_FAILED if end.code else 0
    except (PocketVLMError, ModuleNotFoundError, MemoryError, OSError, RuntimeError) as error:
        if not _flushed():
            _tell(_one_line(error))
        return EXIT_FAILED
    return _flushed() or code


def _one_line(error: Exception) -> str:
    """Return an error's one line for the user; raise it again where it is one that nobody foresaw."""
    if isinstance(error, PocketVLMError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return f"this command needs {error.name}. Install it with: {install_line(extra)}"
    if is_lack_of_memory(error):
        return "there is not enough memory for this. Stop what else runs here, or take a larger machine."
    if isinstance(error, OSError) and error.errno is not None:
        return _one_line_of_the_system(error)
    raise error


def _one_line_of_the_system(error: OSError) -> str:
    is_named = isinstance(error.filename, (str, bytes))
    if error.errno in _SPACE:
        place = os.fsdecode(error.filename) if is_named else "the output"
        return f"{place} cannot be written: {error.strerror}. Free some space there, or write elsewhere."
    if is_named:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    raise error


def _flushed() -> int:
    """Return `EXIT_FAILED` where results did not reach standard output, and say so; else 0.

    What cannot be written is dropped: the interpreter would try again at its end, and complain in lines of its own.
    """
    code = 0
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            if descriptor == 1 and not isinstance(error, BrokenPipeError):
                _tell(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}")
                code = EXIT_FAILED
    return code


def _tell(message: str) -> None:
    try:
        progress_console.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    except OSError:  # nobody can be told; the exit code remains
        return
