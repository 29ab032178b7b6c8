"""The session options that a time to spin becomes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from runtime.onnx_runtime import onnx_runtime
from runtime.providers import session_options
from runtime.settings import RuntimeSettings


def entry(settings: RuntimeSettings, name: str) -> str | None:
    """Return one of a session's config entries; None where it is not set."""
    options = session_options(onnx_runtime(), settings)
    try:
        return str(options.get_session_config_entry(f"session.{name}"))
    except RuntimeError:
        return None


def test_threads_sleep_where_they_are_told_to() -> None:
    assert entry(RuntimeSettings(spin_us=0), "intra_op.allow_spinning") == "0"
    assert entry(RuntimeSettings(spin_us=0), "force_spinning_stop") is None


def test_by_default_threads_spin_for_a_fraction_of_a_step_and_never_between_runs() -> None:
    assert entry(RuntimeSettings(), "intra_op.spin_duration_us") == "100"
    assert entry(RuntimeSettings(), "force_spinning_stop") == "1"


def test_threads_spin_for_a_time_and_no_more_once_a_run_is_over() -> None:
    settings = RuntimeSettings(spin_us=250)
    assert entry(settings, "intra_op.allow_spinning") == "1"
    assert entry(settings, "intra_op.spin_duration_us") == "250"
    assert entry(settings, "force_spinning_stop") == "1"


@pytest.mark.parametrize("spin_us", [-1, 10_001])
def test_a_time_that_makes_no_sense_is_refused(spin_us: int) -> None:
    with pytest.raises(ValidationError, match="spin_us"):
        RuntimeSettings(spin_us=spin_us)
