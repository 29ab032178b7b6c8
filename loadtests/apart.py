"""A function in a process of its own, which ends with the call whatever ends it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ParamSpec, TypeVar, cast

from bundle.errors import MachineError, PocketVLMError

_STOP_TIMEOUT_S = 10.0

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def run_apart(work: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
    """Return what a function returns in a fresh process.

    Args:
        work: Of a module's top level, as its arguments and its result something that can be pickled.
        arguments: Its arguments.
        options: Its named arguments.

    Raises:
        PocketVLMError: The function raised it.
        MachineError: The process ended without a result, for lack of memory most likely.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, arguments, options))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError as error:
        process.join(_STOP_TIMEOUT_S)
        raise MachineError(
            f"the process that measured ended with code {process.exitcode}; what it said is above. "
            "Was there enough memory? Smaller batches and prompts need less."
        ) from error
    finally:
        ours.close()
        _stop(process)
    if isinstance(found, PocketVLMError):
        raise found
    return cast(Result, found)


def _work(connection: Connection, work: Callable[..., Any], arguments: Any, options: Any) -> None:
    """Send what the function returns, or the error that it raised on purpose; SIGTERM unwinds its stack."""
    signal.signal(signal.SIGTERM, lambda number, frame: _unwind())
    with suppress(KeyboardInterrupt):
        try:
            connection.send(work(*arguments, **options))
        except PocketVLMError as error:
            connection.send(error)


def _unwind() -> None:
    raise SystemExit


def _stop(process: BaseProcess) -> None:
    process.terminate()
    process.join(_STOP_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
