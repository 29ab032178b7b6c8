"""Which operators this machine's ONNX Runtime has, found out by running models of one node.

The models lie in `runtime/probes/`; `export.probes` writes them, for whatever runs graphs does not build any.
"""

from __future__ import annotations

from pathlib import Path

from runtime.onnx_runtime import first_line, onnx_runtime
from runtime.providers import CPU, session_options
from runtime.settings import RuntimeSettings

PROBES = Path(__file__).resolve().parent / "probes"
_FATAL_ONLY = 4
"""ONNX Runtime's log severity for probes, whose failures are findings."""


def probed_operators() -> list[str]:
    """Return the operators that there is a model for."""
    return sorted(path.stem for path in PROBES.glob("*.onnx"))


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
