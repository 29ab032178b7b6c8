"""One graph that OpenVINO has opened: arrays in, arrays out. OpenVINO is imported here alone, without its telemetry.

It reads ONNX as it is, a bundle's W8A8 and MultiHeadAttention too, and computes in bfloat16 what is not int8 where the
processor has instructions for it.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from bundle.errors import BundleFileError, MachineError
from bundle.extras import install_line
from bundle.machine import num_granted_cores, sums_codes_exactly, try_version
from runtime.graph import Array, Port
from runtime.onnx_runtime import first_line, memory_error
from runtime.settings import RuntimeSettings

_MULTIPLIES_CODES = "LP_TRANSFORMS_MODE"
"""Whether products are of 8-bit codes where a graph has them. On processors that cut sums of those off, they are
computed in float32 of the same codes."""
_TELEMETRY = "openvino_telemetry"

_DTYPE_OF_NAME = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "i8": "int8",
    "u8": "uint8",
    "boolean": "bool",
}


def has_openvino() -> bool:
    """Return whether the extra is installed."""
    return importlib.util.find_spec("openvino") is not None


def openvino_version() -> str:
    """Return the version of OpenVINO; empty where it is not installed."""
    return try_version("openvino") or ""


class OpenVinoGraph:
    """One graph, opened on the CPU. Runs from several threads wait for each other.

    Args:
        path: The `.onnx` file, its weights beside it.
        settings: Threads.
        is_exact: Compute in float32 what is not int8, whatever the processor has.
        outputs: That are computed; it has no others then. None: all.

    Attributes:
        name: For messages.
        inputs: As declared.
        optional_inputs: None: an input with a value of its own is a constant to OpenVINO.
        outputs: As declared, those that are computed.

    Raises:
        MachineError: OpenVINO or memory is missing, or it cannot run the graph.
        BundleFileError: It is no graph.
    """

    def __init__(
        self, path: Path, settings: RuntimeSettings, *, is_exact: bool, outputs: Sequence[str] | None = None
    ) -> None:
        self.name = str(path)
        compiled = _compiled(path, _options(settings, is_exact), outputs)
        self.inputs = tuple(map(_port, compiled.inputs))
        self.optional_inputs: tuple[Port, ...] = ()
        self.outputs = tuple(map(_port, compiled.outputs))
        self._request = compiled.create_infer_request()
        self._runs = threading.Lock()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs by name, all where none are named; the arrays are new.

        Raises:
            MachineError: The run failed.
        """
        names = [port.name for port in self.outputs] if outputs is None else outputs
        try:
            with self._runs:
                self._request.infer(dict(feeds))
                return {name: self._request.get_tensor(name).data.copy() for name in names}
        except Exception as error:  # OpenVINO's errors are RuntimeError, whatever went wrong
            raise memory_error(self.name, error) or MachineError(
                f"{self.name}: a run of OpenVINO failed: {first_line(error)}"
            ) from error


def _openvino() -> ModuleType:
    # On import it would keep an id under the user's home and send an event; without this package it does neither.
    sys.modules.setdefault(_TELEMETRY, cast(ModuleType, None))
    try:
        import openvino
    except ImportError as error:
        raise MachineError(
            f"OpenVINO is not installed. Install it with: {install_line('openvino')}; or set encoder_runtime to "
            "onnxruntime."
        ) from error
    return openvino  # type: ignore[no-any-return]


def _options(settings: RuntimeSettings, is_exact: bool) -> dict[str, Any]:
    """Return what a graph is compiled with: one stream, threads that go where the system puts them."""
    threads = settings.intra_threads or num_granted_cores() or 0  # 0: OpenVINO's own choice, the physical cores
    exact = {"INFERENCE_PRECISION_HINT": "f32"} if is_exact else {}
    codes = {} if sums_codes_exactly() else {_MULTIPLIES_CODES: "NO"}
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        **exact,
        **codes,
    }


def _compiled(path: Path, options: Mapping[str, Any], outputs: Sequence[str] | None) -> Any:
    openvino = _openvino()
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        if outputs is not None and len(outputs) < len(model.outputs):
            results = [output.get_node() for output in model.outputs if output.any_name in outputs]
            model = openvino.Model(results, model.get_parameters())
    except Exception as error:  # as above
        raise memory_error(str(path), error) or BundleFileError(
            f"{path}: OpenVINO {openvino.__version__} cannot read it: {first_line(error)}. Set encoder_runtime to "
            "onnxruntime."
        ) from error
    try:
        return core.compile_model(model, "CPU", dict(options))
    except Exception as error:  # as above
        raise memory_error(str(path), error) or MachineError(
            f"{path}: OpenVINO {openvino.__version__} cannot run it here: {first_line(error)}. Set encoder_runtime to "
            "onnxruntime."
        ) from error


def _port(port: Any) -> Port:
    """Return what OpenVINO says of an input or output; a free size has no name there."""
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    kind = port.element_type.get_type_name()
    return Port(port.any_name, _DTYPE_OF_NAME.get(kind, kind), shape)
