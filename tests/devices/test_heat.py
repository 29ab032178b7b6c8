"""Heat is read from the files that Linux and a Jetson show, and told once when it begins to hold the machine back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from devices.heat import Heat, HeatWatch, read_heat
from devices.power_mode import power_mode
from tests.devices.energy.recorded import write


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """An Orin Nano at rest: one of its sensors is off, its fan turns, one governor is at work."""
    for number, (name, value) in enumerate((("cpu-thermal", "49687"), ("cv0-thermal", ""), ("tj-thermal", "50250"))):
        write(tmp_path / f"class/thermal/thermal_zone{number}/type", name)
        write(tmp_path / f"class/thermal/thermal_zone{number}/temp", value)
    devices = (("pwm-fan", 3), ("cpu-throttle-alert", 0), ("gpu-throttle-alert", 0), ("devfreq-17000000.gpu", 18))
    for number, (name, state) in enumerate(devices):
        write(tmp_path / f"class/thermal/cooling_device{number}/type", name)
        write(tmp_path / f"class/thermal/cooling_device{number}/cur_state", str(state))
    for number, count in enumerate((0, 15, 37), start=1):
        write(tmp_path / f"class/hwmon/hwmon3/oc{number}_event_cnt", str(count))
    return tmp_path


def test_zones_alerts_and_events_of_a_jetson_are_read(sys: Path) -> None:
    heat = read_heat(sys)
    assert heat.celsius == {"cpu-thermal": 49.687, "tj-thermal": 50.25}
    assert heat.held_back == {"cpu-throttle-alert": False, "gpu-throttle-alert": False}
    assert heat.events == {"under-voltage": 0, "average over-current": 15, "instantaneous over-current": 37}
    write(sys / "class/thermal/cooling_device2/cur_state", "1")
    assert read_heat(sys).alerts == ("gpu-throttle-alert",)


def test_an_x86_processor_counts_its_own(tmp_path: Path) -> None:
    write(tmp_path / "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "7")
    assert read_heat(tmp_path).events == {"processor too hot": 7}


def test_a_machine_that_shows_nothing_is_not_taken_for_a_cool_one(tmp_path: Path) -> None:
    assert not read_heat(tmp_path).is_told


def test_what_begins_and_ends_is_logged_once(caplog) -> None:
    looks = iter(
        [
            Heat({"tj-thermal": 60.0}, {"gpu-throttle-alert": False}, {"under-voltage": 3}),
            Heat({"cpu-thermal": 80.0, "tj-thermal": 99.5}, {"gpu-throttle-alert": True}, {"under-voltage": 3}),
            Heat({"tj-thermal": 99.0}, {"gpu-throttle-alert": True}, {"under-voltage": 5}),
            Heat({"tj-thermal": 70.0}, {"gpu-throttle-alert": False}, {"under-voltage": 5}),
        ]
    )
    watch = HeatWatch(lambda: next(looks))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watch.look_again()
    assert [record.getMessage() for record in caplog.records] == [
        "gpu-throttle-alert: clocks are lowered, answers take longer; hottest: tj-thermal, 99.5 C",
        "under-voltage: 2 events since the last look, 5 since the machine started",
        "gpu-throttle-alert: clocks are lowered no more",
    ]


CONFIG = """# comment: < POWER_MODEL ID=9 NAME=NOT_ONE >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


@pytest.mark.parametrize(("status", "number", "name"), [("pmode:0002", 2, "MAXN_SUPER"), (None, 1, "25W")])
def test_the_power_mode_is_what_was_set_or_else_the_default(
    tmp_path, status: str | None, number: int, name: str
) -> None:
    (tmp_path / "nvpmodel.conf").write_text(CONFIG, encoding="ascii")
    if status is not None:
        write(tmp_path / "status", status)
    mode = power_mode(tmp_path / "status", tmp_path / "nvpmodel.conf")
    assert mode is not None
    assert (mode.number, mode.name) == (number, name)
    assert name not in mode.others
    assert "15W" in str(mode)


def test_a_machine_without_modes_has_none(tmp_path: Path) -> None:
    assert power_mode(tmp_path / "status", tmp_path / "nvpmodel.conf") is None
