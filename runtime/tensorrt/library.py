"""TensorRT and TensorRT-RTX: one API under two names. They are imported here alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bundle.errors import MachineError
from bundle.extras import install_line

Flavour = Literal["tensorrt", "tensorrt-rtx"]
_NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
LICENCE = "NVIDIA's own licence (proprietary), which its package brings along; read it before engines are passed on"


@dataclass(frozen=True)
class Library:
    """One of the two, imported.

    Attributes:
        flavour: Which.
        module: Its classes.
    """

    flavour: Flavour
    module: Any

    @property
    def name(self) -> str:
        """As its maker writes it."""
        return _NAMES[self.flavour]

    @property
    def version(self) -> str:
        """Such as "1.7.1.116"."""
        return str(self.module.__version__)

    def log(self) -> Any:
        """Return a logger that keeps errors and prints nothing."""
        return _log_class(self.module)()


def open_library(flavour: Flavour) -> Library:
    """Return TensorRT or TensorRT-RTX.

    Raises:
        MachineError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        return Library(flavour, _rtx() if flavour == "tensorrt-rtx" else _proper())
    except (ImportError, OSError) as error:
        raise MachineError(
            f"{_NAMES[flavour]} cannot be loaded here ({next(iter(str(error).splitlines()), 'no reason given')}). "
            f"Install it with: {install_line(flavour)}"
        ) from error


def _rtx() -> Any:
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


def _proper() -> Any:
    import tensorrt

    return tensorrt


def _log_class(module: Any) -> Any:
    worst = {module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR}

    class Log(module.ILogger):  # type: ignore[misc]  # its base is known when it is imported
        """Attributes: `errors`, as they came."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Keep an error."""
            if severity in worst:
                self.errors.append(message)

    return Log
