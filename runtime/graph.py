"""One graph that ONNX Runtime has opened: arrays in, arrays out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy.typing as npt

from bundle.errors import BundleFileError, MachineError, PocketVLMError
from runtime.capture_gate import CAPTURE_GATE
from runtime.onnx_runtime import first_line, lacks_operator, memory_error, onnx_runtime
from runtime.placement import check_placement, refuses_capture
from runtime.providers import WEIGHTS_APART, providers_of, session_options
from runtime.settings import Provider, RuntimeSettings

logger = logging.getLogger(__name__)

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

_NOT_CAPTURED = -1
"""ONNX Runtime's `gpu_graph_id` of a run that is neither captured nor replayed."""


def device_gate(device: Provider, *, captures: bool = False) -> AbstractContextManager[None]:
    """Return what is entered for the length of a run, a capture, or whatever else uses a device; not on the host."""
    if device == "cpu":
        return nullcontext()
    return CAPTURE_GATE.capture() if captures else CAPTURE_GATE.run()


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


class SessionPlan(Protocol):
    """How a session is opened where its settings do not say it all, as `runtime.tensorrt.provider` plans it.

    Attributes:
        provider: ONNX Runtime's name of the one that all nodes go to.
    """

    @property
    def provider(self) -> str:
        """Return the provider's name."""
        ...

    def source(self, graph: Path) -> Path:
        """Return the file that is opened in a graph's place."""
        ...

    def apply(self, runtime: ModuleType, options: Any) -> list[tuple[str, dict[str, str]]]:
        """Set a session's options, and return its providers."""
        ...


class Graph:
    """One graph, opened.

    Args:
        source: The `.onnx` file, or a serialized graph. Weights beside it are memory-mapped by the runtime.
        settings: Provider and threads.
        weights_folder: Where the weights of a serialized graph lie.
        prepacks: Let kernels keep weights in layouts of their own, a second copy of most; one run does not repay it.
        captures: Let runs be captured on a device that can; a graph that cannot be is opened without.
        plan: How its session is opened instead; of a graph that is a file.

    Attributes:
        name: For messages.
        device: Where it runs.
        in_part: Options of a run in which not all outputs are wanted.
        can_capture: Whether runs that have a number are captured.
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
        captures: bool = False,
        plan: SessionPlan | None = None,
    ) -> None:
        made_of = f"a part of a graph of {weights_folder}" if weights_folder else "a graph made for this process"
        self.name = str(source) if isinstance(source, Path) else made_of
        self.device = settings.provider
        wanted = _Wanted(settings, weights_folder, prepacks, captures and settings.provider != "cpu", plan)
        self._session, self.can_capture = _opened(self.name, source, wanted)
        self.inputs = tuple(map(Port.of, self._session.get_inputs()))
        self.optional_inputs = tuple(map(Port.of, self._session.get_overridable_initializers()))
        self.outputs = tuple(map(Port.of, self._session.get_outputs()))
        self._whole, self.in_part = self.run_options(in_part=False), self.run_options(in_part=True)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return outputs by name, all where none are named; the arrays are new.

        Raises:
            MachineError: The run failed.
        """
        names = [port.name for port in self.outputs] if outputs is None else list(outputs)
        options = self.in_part if len(names) < len(self.outputs) else self._whole
        try:
            with device_gate(self.device):
                return dict(zip(names, self._session.run(names, dict(feeds), options), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no class
            raise run_error(self.name, error) from error

    def binding(self) -> Any:
        """Return a fresh ONNX Runtime binding."""
        return self._session.io_binding()

    def run_options(self, *, in_part: bool, graph_number: int | None = None) -> Any:
        """Return options of a run.

        Args:
            in_part: Compute what is bound and nothing else. It costs every run a walk through the graph.
            graph_number: Of a run that is captured at first and replayed then; None: it is not.
        """
        options = onnx_runtime().RunOptions()
        options.only_execute_path_to_fetches = in_part
        if self.can_capture:
            options.add_run_config_entry("gpu_graph_id", str(_NOT_CAPTURED if graph_number is None else graph_number))
        return options

    def run_bound(self, binding: Any, options: Any | None = None, *, captures: bool = False) -> None:
        """Run with inputs and outputs bound beforehand.

        Args:
            binding: As `binding` returned it.
            options: As `run_options` returned them; None: all outputs are bound.
            captures: This is the run that is captured: nothing else of this process uses a device meanwhile.

        Raises:
            MachineError: The run failed.
        """
        try:
            with device_gate(self.device, captures=captures):
                self._session.run_with_iobinding(binding, options or self._whole)
        except Exception as error:  # ONNX Runtime's errors share no class
            raise run_error(self.name, error) from error


_SHARED_CODES = "Attempt to replace the existing tensor"
"""What ONNX Runtime 1.31 says of weights that two products share, where it makes codes unsigned (decision 62)."""


@dataclass(frozen=True)
class _Wanted:
    """How a graph is to be opened; the fields are arguments of `Graph`, but for the last.

    Attributes:
        in_codes: Products of codes are computed in codes; else in float32 of the same codes.
    """

    settings: RuntimeSettings
    weights_folder: Path | None
    prepacks: bool
    captures: bool
    plan: SessionPlan | None
    in_codes: bool = True


def _opened(name: str, source: Path | bytes, wanted: _Wanted) -> tuple[Any, bool]:
    """Return a session and whether its runs can be captured."""
    try:
        with device_gate(wanted.settings.provider):
            session = _session(source, wanted)
    except Exception as error:  # ONNX Runtime's errors share no class
        if wanted.captures and refuses_capture(error):
            logger.warning(
                "%s: its runs cannot be captured here, so their operators are launched one by one, which takes several "
                "times as long: %s",
                name,
                first_line(error),
            )
            return _opened(name, source, replace(wanted, captures=False))
        if wanted.in_codes and _SHARED_CODES in str(error):
            return _opened(name, source, replace(wanted, in_codes=False))
        raise _open_error(name, error) from error
    check_placement(name, session, wanted.settings.provider, None if wanted.plan is None else wanted.plan.provider)
    return session, wanted.captures


def _session(source: Path | bytes, wanted: _Wanted) -> Any:
    runtime, settings = onnx_runtime(), wanted.settings
    options = session_options(runtime, settings)
    if wanted.plan is not None and isinstance(source, Path):
        planned = wanted.plan.apply(runtime, options)
        # A plug-in's devices stand in the options; named once more, it would be looked for among those built in
        named = {"providers": planned} if planned else {}
        return runtime.InferenceSession(str(wanted.plan.source(source)), options, **named)
    providers = providers_of(settings, captures=wanted.captures)
    if wanted.weights_folder is not None:
        folder = str(wanted.weights_folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if not wanted.in_codes:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not wanted.prepacks:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if wanted.captures:  # a plan of memory would be made after the first run, and want other memory in the captured one
        options.enable_mem_pattern = False
        options.add_session_config_entry(WEIGHTS_APART, "1")
    serialized = str(source) if isinstance(source, Path) else source
    return runtime.InferenceSession(serialized, options, providers=providers)


def _open_error(name: str, error: Exception) -> PocketVLMError:
    """Return what to raise where a graph cannot be opened."""
    if isinstance(error, PocketVLMError):
        return error
    version = onnx_runtime().__version__
    if lacks_operator(error):
        return MachineError(
            f"{name}: ONNX Runtime {version} lacks an operator of it: {first_line(error)}. "
            "See what this machine has with: pocketvlm doctor"
        )
    told = memory_error(name, error)
    return told or BundleFileError(f"{name}: ONNX Runtime {version} cannot open it: {error}")


def run_error(name: str, error: Exception) -> PocketVLMError:
    """Return what to raise where a run failed."""
    if isinstance(error, PocketVLMError):
        return error
    return memory_error(name, error) or MachineError(f"{name}: a run failed: {first_line(error)}")
