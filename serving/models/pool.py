"""The threads that do a request's own work before it crosses: decoding, templating, tokenizing, resizing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from bundle.errors import EngineDeadError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PreprocessPool:
    """A few threads shared by the models of one client."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="preprocess")
        self._is_closed = False

    async def run(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what the function returns, called on one of the threads.

        Raises:
            EngineDeadError: The pool is closed.
        """
        if self._is_closed:
            raise EngineDeadError("the engine was stopped")
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Refuse new work; what was taken is finished."""
        self._is_closed = True
        self._executor.shutdown(wait=False)
