"""Execution providers: which there are, which a session asks for, and with what options."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from bundle.errors import MachineError
from bundle.extras import install_line
from bundle.machine import num_granted_cores, sums_codes_exactly
from runtime.onnx_runtime import onnx_runtime
from runtime.settings import Provider, RuntimeSettings

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
RECORDS_PLACEMENT = "session.record_ep_graph_assignment_info"
"""Lets a session tell which provider each node went to."""
_EXACT_CODES = "session.x64quantprecision"
"""Where a processor sums products of 8-bit codes in 16 bits (`sums_codes_exactly`), sums of full codes are cut off in
silence; with this the weights' codes are made unsigned there, and sums are whole. ONNX Runtime asks only whether its
kernels for both kinds of codes are of two tables, which they are with VNNI too, and would take the slower one there."""
_PROVIDERS: dict[Provider, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA, CPU)}
_CUDA_OPTIONS: dict[str, str] = {
    # Single precision is what was exported and what the recorded run is held to; whoever wants speed has float16.
    "use_tf32": "0",
    # Trying kernels out for every new shape takes seconds, in the first requests of every process.
    "tunable_op_enable": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    # Sums of squares in single precision: float16 overflows where channels are loud (hundreds and more).
    "enable_skip_layer_norm_strict_mode": "1",
}
"""Of the CUDA provider, each for a reason of its own; `python -m loadtests.gpu` measures with them."""
_UNCAPTURED = {"arena_extend_strategy": "kSameAsRequested"}
"""Doubling would take memory that others have use for. What is captured may not ask for memory while it is, so there
the arena grows by doubling, and what the first run took is enough for the second; weights lie outside it there."""
WEIGHTS_APART = "session.use_device_allocator_for_initializers"
"""Lets weights be taken of the device as large as they are, and not of an arena that grows by doubling."""
_ERRORS_ONLY = 3
"""ONNX Runtime's log severity: what goes wrong is raised, warnings about graph shapes are not for users."""


def available_providers() -> tuple[str, ...]:
    """Return the execution providers that the installed ONNX Runtime was built with.

    Raises:
        MachineError: It is not installed.
    """
    return tuple(onnx_runtime().get_available_providers())


def has_provider(provider: Provider) -> bool:
    """Return whether sessions can run there."""
    return _PROVIDERS[provider][0] in available_providers()


def providers_of(settings: RuntimeSettings, *, captures: bool = False) -> list[str | tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's names of what a session asks for, in order, with their options.

    Args:
        settings: Provider.
        captures: Let runs of the session be captured as CUDA graphs.

    Raises:
        MachineError: The installed build lacks the provider.
    """
    names = _PROVIDERS[settings.provider]
    if not has_provider(settings.provider):
        raise MachineError(
            f"this ONNX Runtime {onnx_runtime().__version__} has no {names[0]}, only "
            f"{', '.join(available_providers())}. Replace it with: pip uninstall onnxruntime, then "
            f"{install_line('gpu')}; or choose provider cpu."
        )
    cuda = {**_CUDA_OPTIONS, **({"enable_cuda_graph": "1"} if captures else _UNCAPTURED)}
    return [(name, cuda) if name == CUDA else name for name in names]


def session_options(runtime: ModuleType, settings: RuntimeSettings) -> Any:
    """Return the options that every session of ours has."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads or num_granted_cores() or 0  # 0: one per physical core
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    if not sums_codes_exactly():
        options.add_session_config_entry(_EXACT_CODES, "1")
    for name, value in _spinning(settings.spin_us).items():
        options.add_session_config_entry(f"session.{name}", value)
    if settings.provider != "cpu":
        options.add_session_config_entry(RECORDS_PLACEMENT, "1")
    return options


def _spinning(spin_us: int) -> dict[str, str]:
    """Return options by which threads spin for so long behind an operator, and no more once a run is over."""
    if not spin_us:
        return {"intra_op.allow_spinning": "0"}
    return {
        "intra_op.allow_spinning": "1",
        "intra_op.spin_duration_us": str(spin_us),
        "force_spinning_stop": "1",  # else they would spin on while nothing is to do, against other sessions
    }
