"""ONNX Runtime itself. It is imported here alone, after its telemetry was switched off."""

from __future__ import annotations

import os
from types import ModuleType

from bundle.errors import MachineError, OutOfMemoryError
from bundle.extras import install_line

# Since 1.29 its wheels keep a device id and queue events (model file names, producer, CPU, path of Python) under the
# user's cache folder, and try to send them. Read when the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_NO_MEMORY = (
    "failed to allocate memory",
    "out of memory",
    "bad_alloc",
    "cudaerrormemoryallocation",
    "is smaller than requested bytes",
)
_NO_OPERATOR = ("is not a registered function/op", "No Op registered for")


def onnx_runtime() -> ModuleType:
    """Return the module.

    Raises:
        MachineError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError(
            f"running a bundle needs ONNX Runtime. Install it with: {install_line('cpu')} (or [gpu])"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


def runtime_version() -> str:
    """Return the version of ONNX Runtime.

    Raises:
        MachineError: It is not installed.
    """
    return str(onnx_runtime().__version__)


def lacks_operator(error: Exception) -> bool:
    """Return whether a graph could not be opened because this build has no kernel for it."""
    return type(error).__name__ == "NotImplemented" or any(sign in str(error) for sign in _NO_OPERATOR)


def memory_error(what: str, error: Exception) -> OutOfMemoryError | None:
    """Return the error to raise where memory ran out, of the host or of a device; None where something else failed."""
    told = str(error).lower()
    if not isinstance(error, MemoryError) and not any(sign in told for sign in _NO_MEMORY):
        return None
    return OutOfMemoryError(
        f"{what}: memory ran out ({first_line(error)}). Lower max_sequences, context_tokens or vision_batch_tiles, or "
        "take a variant of fewer bits."
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
