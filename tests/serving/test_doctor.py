"""The doctor's findings come from running the probes, not from a table."""

from pathlib import Path

import pytest

import serving.doctor as doctor
from devices.energy.account import FoundMeters
from devices.heat import Heat
from devices.power_mode import PowerMode
from runtime import operators
from tests.devices.energy.test_account import Ticking


def test_every_probe_is_run_on_the_cpu_and_the_pinned_runtime_serves() -> None:
    found = doctor.diagnose()
    on_cpu = {finding.operator for finding in found.operators if finding.provider == "CPUExecutionProvider"}
    assert on_cpu == set(operators.probed_operators())
    assert found.can_serve
    assert found.memory_bytes is None or found.memory_bytes > 1 << 28


def test_a_probe_that_cannot_run_is_a_finding_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    monkeypatch.setattr(operators, "PROBES", tmp_path)
    assert operators.probed_operators() == ["broken"]
    failure = operators.failure_of("broken", "CPUExecutionProvider")
    assert failure
    assert "\n" not in failure


def test_missing_operators_mean_that_the_machine_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "failure_of", lambda operator, provider: "absent" if "Group" in operator else None)
    assert not doctor.diagnose().can_serve


def test_missing_extras_come_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    assert doctor.diagnose().missing["ray"] == "pip install -e '.[ray]' in a checkout of PocketVLM"


def test_an_extra_is_missing_where_one_of_its_modules_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "gguf" else module)
    assert set(doctor.diagnose().missing) == {"export"}


def test_extras_that_nothing_uses_are_not_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    assert not {"optimum", "llguidance"} & set(doctor.diagnose().missing)


def test_a_cuda_build_that_cannot_be_loaded_is_told_and_so_is_a_devices_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(doctor, "runs_here", lambda provider: False)
    monkeypatch.setattr(doctor, "failure_of", lambda operator, provider: None)
    monkeypatch.setattr(doctor, "free_bytes", lambda: 3 << 30)
    told = [line for line in doctor.lines(doctor.diagnose()) if isinstance(line, str)]
    assert any("CUDA cannot be loaded" in line for line in told)
    assert any("3.0 GiB of memory free" in line for line in told)


def test_nothing_is_said_of_cuda_where_it_was_not_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda: None)
    told = [line for line in doctor.lines(doctor.diagnose()) if isinstance(line, str)]
    assert not any("NVIDIA" in line or "CUDA cannot" in line for line in told)


def test_a_board_its_mode_its_heat_and_its_meter_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heat = Heat({"tj-thermal": 96.4}, {"gpu-throttle-alert": True}, {"under-voltage": 2, "average over-current": 0})
    monkeypatch.setattr(doctor, "board_model", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    monkeypatch.setattr(doctor, "power_mode", lambda: PowerMode(0, "15W", ("25W",)))
    monkeypatch.setattr(doctor, "read_heat", lambda: heat)
    monkeypatch.setattr(doctor, "find_meters", lambda: FoundMeters((Ticking("INA3221 VDD_IN"),), ()))
    told = "\n".join(line for line in doctor.lines(doctor.diagnose()) if isinstance(line, str))
    for words in (
        "board: NVIDIA Jetson Orin Nano",
        "power mode: 15W, number 0 (others: 25W)",
        "tj-thermal 96 C",
        "clocks are lowered now[/red], says gpu-throttle-alert",
        "under-voltage: 2 events",
        "energy: INA3221 VDD_IN",
    ):
        assert words in told
    assert "average over-current" not in told


def test_without_a_meter_it_says_which_were_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_meters", lambda: FoundMeters((), ("no RAPL", "no NVML")))
    told = [line for line in doctor.lines(doctor.diagnose()) if isinstance(line, str)]
    assert "energy: no meter (no RAPL; no NVML)" in told
