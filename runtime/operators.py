"""Which operators this machine's ONNX Runtime has, found out by running models of one node.

The models lie in `runtime/probes/`; `export.probes` writes them, for whatever runs graphs does not build any.
"""

from __future__ import annotations

from pathlib import Path

from runtime.onnx_runtime import first_line, onnx_runtime
from runtime.providers import CPU, has_provider, providers_of, session_options
from runtime.settings import Provider, RuntimeSettings

PROBES = Path(__file__).resolve().parent / "probes"
_ANY = "MatMulNBits-4bit"
"""A probe that every provider of ours has a kernel for."""
_FATAL_ONLY = 4
"""ONNX Runtime's log severity for probes, whose failures are findings."""


def probed_operators() -> list[str]:
    """Return the operators that there is a model for."""
    return sorted(path.stem for path in PROBES.glob("*.onnx"))


def runs_here(provider: Provider) -> bool:
    """Return whether sessions run on a provider: it was built in, and could be loaded, with a device and libraries.

    ONNX Runtime lists what it was built with, and opens sessions on the CPU where that cannot be loaded.
    """
    if provider == "cpu" or not has_provider(provider):
        return provider == "cpu"
    settings = RuntimeSettings(provider=provider)
    options = session_options(onnx_runtime(), settings)
    options.log_severity_level = _FATAL_ONLY
    opened = onnx_runtime().InferenceSession(str(PROBES / f"{_ANY}.onnx"), options, providers=providers_of(settings))
    return CPU not in opened.get_providers()[:1]


def failure_of(operator: str, provider: str) -> str | None:
    """Return why an operator cannot run on a provider, in one line, or None where it runs."""
    runtime = onnx_runtime()
    options = session_options(runtime, RuntimeSettings(intra_threads=1))
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if provider != CPU else "0")
    try:
        runtime.InferenceSession(str(PROBES / f"{operator}.onnx"), options, providers=[provider]).run(None, {})
    except Exception as error:  # whatever the runtime raises is the finding
        return first_line(error)
    return None
