"""One graph that ONNX Runtime has opened: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bundle.errors import BundleFileError, MachineError, PocketVLMError
from runtime.onnx_runtime import first_line, lacks_operator, memory_error, onnx_runtime
from runtime.providers import providers_of, session_options
from runtime.settings import RuntimeSettings

Array = npt.NDArray[Any]

_DTYPE_OF_ORT_TYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class Port:
    """An input or output as the graph itself declares it.

    Attributes:
        name: As in the graph.
        dtype: numpy name; ONNX Runtime's own where numpy has none.
        shape: A size, or something else where the size is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, value: Any) -> Port:
        """Return what ONNX Runtime says of one."""
        return cls(value.name, _DTYPE_OF_ORT_TYPE.get(value.type, value.type), tuple(value.shape))


class Graph:
    """One graph, opened.

    Args:
        source: The `.onnx` file, or a serialized graph. Weights beside it are memory-mapped by the runtime.
        settings: Provider and threads.
        weights_folder: Where the weights of a serialized graph lie.
        prepacks: Let kernels keep weights in layouts of their own, a second copy of most; one run does not repay it.

    Attributes:
        name: For messages.
        inputs: As declared, those without a value of their own.
        optional_inputs: Those that have one.
        outputs: As declared.

    Raises:
        MachineError: ONNX Runtime, its provider, an operator or memory is missing.
        BundleFileError: It is no graph.
    """

    def __init__(
        self,
        source: Path | bytes,
        settings: RuntimeSettings,
        *,
        weights_folder: Path | None = None,
        prepacks: bool = True,
    ) -> None:
        self.name = str(source) if isinstance(source, Path) else f"a part of a graph of {weights_folder}"
        self.device = settings.provider
        self._session = _opened(self.name, source, settings, weights_folder, prepacks)
        self.inputs = tuple(map(Port.of, self._session.get_inputs()))
        self.optional_inputs = tuple(map(Port.of, self._session.get_overridable_initializers()))
        self.outputs = tuple(map(Port.of, self._session.get_outputs()))
        # Computes what is asked for and nothing else. It costs every run a walk through the graph.
        self._in_part = onnx_runtime().RunOptions()
        self._in_part.only_execute_path_to_fetches = True

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs by name, all where none are named; the arrays are new.

        Raises:
            MachineError: The run failed.
        """
        names = [port.name for port in self.outputs] if outputs is None else list(outputs)
        options = self._in_part if len(names) < len(self.outputs) else None
        try:
            return dict(zip(names, self._session.run(names, dict(feeds), options), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no class
            raise run_error(self.name, error) from error

    def binding(self) -> Any:
        """Return a fresh ONNX Runtime binding."""
        return self._session.io_binding()

    def run_bound(self, binding: Any, *, in_part: bool = False) -> None:
        """Run with inputs and outputs bound beforehand.

        Args:
            binding: As `binding` returned it.
            in_part: Not all outputs are bound; the others are not computed.

        Raises:
            MachineError: The run failed.
        """
        try:
            self._session.run_with_iobinding(binding, self._in_part if in_part else None)
        except Exception as error:  # ONNX Runtime's errors share no class
            raise run_error(self.name, error) from error


def _opened(name: str, source: Path | bytes, settings: RuntimeSettings, folder: Path | None, prepacks: bool) -> Any:
    runtime = onnx_runtime()
    options, providers = session_options(runtime, settings), providers_of(settings)
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not prepacks:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        serialized = str(source) if isinstance(source, Path) else source
        return runtime.InferenceSession(serialized, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no class
        if lacks_operator(error):
            raise MachineError(
                f"{name}: ONNX Runtime {runtime.__version__} lacks an operator of it: {first_line(error)}. "
                "See what this machine has with: pocketvlm doctor"
            ) from error
        told = memory_error(name, error)
        if told is not None:
            raise told from error
        raise BundleFileError(f"{name}: ONNX Runtime {runtime.__version__} cannot open it: {error}") from error


def run_error(name: str, error: Exception) -> PocketVLMError:
    """Return what to raise where a run failed."""
    if isinstance(error, PocketVLMError):
        return error
    return memory_error(name, error) or MachineError(f"{name}: a run failed: {first_line(error)}")
