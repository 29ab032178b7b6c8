"""Every meter reads the forms that it is documented to read, counts nothing twice and says why where it cannot."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from devices.energy.gpu import find_gpu
from devices.energy.ina3221 import find_ina3221
from devices.energy.meter import Counted, MeterError, PowerIntegral
from devices.energy.rapl import find_rapl
from devices.energy.tegrastats import board_watts, find_tegrastats, rails_of
from tests.devices.energy.recorded import (
    AGX_ORIN_LINE,
    NANO_LINE,
    NO_POWER_LINE,
    ORIN_NANO_LINE,
    jetpack_4,
    orin_nano,
    rapl,
    write,
)


def test_power_becomes_energy_by_trapezoids() -> None:
    clock = iter((0.0, 1.0, 3.0))
    integral = PowerIntegral(iter((2.0, 4.0, 8.0)).__next__, clock.__next__)
    assert integral.joules() == pytest.approx(3.0)  # (2 + 4) / 2 over 1 s
    assert integral.joules() == pytest.approx(15.0)  # and (4 + 8) / 2 over 2 s


def test_a_counter_that_goes_round_loses_nothing() -> None:
    counter = Counted(iter((90, 95, 5, 7)).__next__, 0.5, range_counts=100)
    assert [counter.joules() for _ in range(3)] == [2.5, 7.5, 8.5]


def test_a_counter_that_began_anew_is_counted_from_there() -> None:
    counter = Counted(iter((90, 4)).__next__, 1.0)
    assert counter.joules() == 4.0


def test_rapl_counts_packages_and_memory_and_not_the_cores_within(tmp_path: Path) -> None:
    rapl(tmp_path)
    meter = find_rapl(tmp_path)
    assert not isinstance(meter, str)
    assert (meter.name, meter.covers) == ("RAPL package-0 + dram", "processor")
    rapl(tmp_path, package_uj=4_000_000, dram_uj=1_500_000)
    assert meter.joules() == pytest.approx(3.0 + 1.0)
    rapl(tmp_path, package_uj=0, dram_uj=1_500_000)  # went round
    assert meter.joules() == pytest.approx(4.0 + 262143.328850 - 4.0)


def test_a_counter_for_root_alone_is_told_with_what_opens_it(tmp_path: Path, monkeypatch) -> None:
    rapl(tmp_path)
    read = Path.read_text

    def refused(path: Path, *given: object, **named: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refused)
    told = find_rapl(tmp_path)
    assert isinstance(told, str)
    assert "Permission denied" in told
    assert "chmod o+r" in told


def test_the_board_rail_of_an_orin_nano_is_the_one_that_is_read(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    meter = find_ina3221(tmp_path)
    assert not isinstance(meter, str)
    assert (meter.name, meter.covers) == ("INA3221 VDD_IN", "board")
    assert meter._integral.watts() == pytest.approx(5.008 * 0.968)  # type: ignore[attr-defined]
    (folder / "curr1_input").unlink()
    with pytest.raises(MeterError, match="curr1_input"):
        meter.joules()


def test_a_board_without_such_a_rail_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    orin_nano(tmp_path, labels=("VDD_GPU_SOC", "VDD_CPU_CV", "NC"))
    meter = find_ina3221(tmp_path)
    assert not isinstance(meter, str)
    assert meter.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV"
    assert meter._integral.watts() == pytest.approx(5.008 * (0.968 + 0.200))  # type: ignore[attr-defined]


def test_the_older_driver_tells_power_itself(tmp_path: Path) -> None:
    jetpack_4(tmp_path)
    meter = find_ina3221(tmp_path)
    assert not isinstance(meter, str)
    assert meter.name == "INA3221 POM_5V_IN"
    assert meter._integral.watts() == pytest.approx(2.532)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (ORIN_NANO_LINE, ("VDD_IN", 4.828)),
        (NANO_LINE, ("POM_5V_IN", 6.245)),
        (AGX_ORIN_LINE, ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 3.205 + 0.801 + 4.133)),
        (NO_POWER_LINE, None),
        ("", None),
    ],
)
def test_a_line_of_tegrastats_tells_the_boards_power(line: str, told: tuple[str, float] | None) -> None:
    found = board_watts(line)
    assert (found is None) == (told is None)
    if found is not None and told is not None:
        assert found[0] == told[0]
        assert found[1] == pytest.approx(told[1])


def test_frequencies_and_memory_are_no_rails() -> None:
    assert rails_of(ORIN_NANO_LINE) == {"VDD_IN": 4.828, "VDD_CPU_GPU_CV": 1.020, "VDD_SOC": 1.461}


def script(path: Path, *lines: str) -> str:
    body = "\n".join(["#!/bin/sh", *(f'echo "{line}"' for line in lines), "exec sleep 60"])
    path.write_text(body, encoding="ascii")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_running_tegrastats_is_a_meter_and_ends_with_it(tmp_path: Path) -> None:
    before = children()
    meter = find_tegrastats(script(tmp_path / "tegrastats", NO_POWER_LINE, ORIN_NANO_LINE))
    assert not isinstance(meter, str)
    assert (meter.name, meter.covers) == ("tegrastats VDD_IN", "board")
    assert meter.joules() > 0
    meter.close()
    assert children() <= before


def test_a_tegrastats_that_tells_no_power_is_no_meter(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("devices.energy.tegrastats._FIRST_LINE_S", 0.3)
    before = children()
    told = find_tegrastats(script(tmp_path / "tegrastats", NO_POWER_LINE))
    assert told == "tegrastats told no rail's power within 0.3 s"
    assert children() <= before


def children() -> set[str]:
    """Return the processes that this one has started and that have not ended; tests before may have left some."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for task in tasks for child in task.read_text(encoding="ascii").split()}


class Gpu:
    """A device of the driver that tells what it is told to tell."""

    def __init__(self, energy_mj: list[int | None], power_mw: int | None = None) -> None:
        self._energies = iter(energy_mj)
        self._power_mw = power_mw
        self.is_closed = False

    def name(self) -> str | None:
        return "Orin"

    def energy_mj(self) -> int | None:
        return next(self._energies)

    def power_mw(self) -> int | None:
        return self._power_mw

    def close(self) -> None:
        self.is_closed = True


def test_a_gpu_with_a_counter_is_read_from_it() -> None:
    meter = find_gpu(Gpu([1000, 1000, 3500]))
    assert not isinstance(meter, str)
    assert (meter.name, meter.covers) == ("NVML Orin", "gpu")
    assert meter.joules() == pytest.approx(2.5)


def test_a_gpu_without_one_is_integrated_and_one_that_tells_nothing_is_said_to() -> None:
    meter = find_gpu(Gpu([None], power_mw=20_000))
    assert not isinstance(meter, str)
    assert meter.period_s < 1
    silent = Gpu([None])
    assert find_gpu(silent) == "NVML Orin tells neither energy nor power"
    assert silent.is_closed


def test_what_is_absent_is_told_as_absent(tmp_path: Path) -> None:
    assert "no RAPL" in str(find_rapl(tmp_path))
    assert "no INA3221" in str(find_ina3221(tmp_path))
    assert find_tegrastats(str(tmp_path / "nothing")).startswith("no ")  # type: ignore[union-attr]
    write(tmp_path / "ina3221/1-0040/hwmon/hwmon3/in1_label", "VDD_IN")
    assert "cannot be read" in str(find_ina3221(tmp_path))
