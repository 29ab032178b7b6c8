"""Lines from a keyboard or a pipe, with history and completion, and Ctrl-C that stops an answer and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any

from bundle.errors import ParameterError
from bundle.machine import cache_folder
from serving.chat.answerer import Answerer
from serving.chat.session import Session

PROMPT = "> "
_GOES_ON = ". "
_MOST_LINES = 1000
"""Of the history."""


NextLine = Callable[[Session], str]
Run = Callable[[asyncio.AbstractEventLoop, Coroutine[Any, Any, None]], None]


def converse(session: Session, answerer: Answerer, pictures: Sequence[str] = ()) -> None:
    """Start what answers, take lines until they end or the user says so, and close it.

    Args:
        session: Over the answerer.
        answerer: Not started.
        pictures: Files and addresses that go with the first question.

    Raises:
        PocketVLMError: It cannot start, or a picture cannot be read.
    """
    loop = asyncio.new_event_loop()
    try:
        try:
            loop.run_until_complete(answerer.start())
            for source in pictures:
                session.show(source)
            _talk(loop, session)
        finally:
            loop.run_until_complete(answerer.close())
    finally:
        loop.close()


def _talk(loop: asyncio.AbstractEventLoop, session: Session) -> None:
    if not sys.stdin.isatty():
        _take_all(loop, session, _piped, _run)
        return
    with _history(session.commands):
        _take_all(loop, session, _typed, _run_stoppable)


def _take_all(loop: asyncio.AbstractEventLoop, session: Session, next_line: NextLine, run: Run) -> None:
    while not session.is_over:
        try:
            line = next_line(session)
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: what was typed is dropped
            if not sys.stdin.isatty():
                raise
            session.forget_lines()
            print(file=sys.stderr)
            continue
        run(loop, session.take(line))


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run some work to its end; Ctrl-C ends the session."""
    task = loop.create_task(work)
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        raise


def _run_stoppable(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run some work to its end, or until Ctrl-C, which stops this and nothing else."""
    task = loop.create_task(work)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _typed(session: Session) -> str:
    return input(_GOES_ON if session.is_within_question else PROMPT)


def _piped(session: Session) -> str:
    try:
        line = sys.stdin.readline()
        line.encode()  # where the locale takes any byte, half surrogate pairs stand for those that are no UTF-8
    except UnicodeError as error:
        raise ParameterError(f"standard input is not UTF-8: {error}") from error
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


@contextmanager
def _history(commands: Sequence[str]) -> Iterator[None]:
    """Let the arrow keys go through what was typed before, and Tab complete commands and files.

    The file is the user's alone: questions are nobody else's business.
    """
    try:
        import readline
    except ImportError:  # Windows, and Pythons built without it
        yield
        return
    file = cache_folder() / "chat-history"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.read_history_file(file)
    readline.set_history_length(_MOST_LINES)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(lambda text, place: completion(text, place, commands))
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(file)


def completion(text: str, place: int, commands: Sequence[str]) -> str | None:
    """Return the place-th thing that begins with a text: a command or a file; None behind the last."""
    found = [command for command in commands if text and command.startswith(text)]
    for name in sorted(glob(f"{Path(text).expanduser() if text.startswith('~') else text}*")):
        found.append(f"{name}/" if Path(name).is_dir() else name)
    return found[place] if place < len(found) else None
