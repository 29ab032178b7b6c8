"""The metrics page tells energy where there is a meter, and that there is none where there is none."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from devices.energy.account import EnergyAccount, FoundMeters
from devices.heat import Heat
from devices.power_mode import PowerMode
from serving.api.app import create_app
from serving.api.energy import EnergyMetrics
from serving.api.heat import HeatMetrics
from serving.fake import FakeClient
from serving.settings import ApiSettings
from tests.devices.energy.test_account import Ticking
from tests.serving.api.conftest import Caller


def page(account: EnergyAccount) -> dict[str, list[tuple[dict[str, str], float]]]:
    return told_by(EnergyMetrics(account))


def told_by(collector: Collector) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a metrics page tells with a collector, by family: labels and values."""
    text = Caller(create_app(FakeClient(), ApiSettings(), collectors=(collector,))).get("/metrics").text
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in text_string_to_metric_families(text)
    }


def test_each_meter_is_a_counter_under_its_name() -> None:
    account = EnergyAccount(FoundMeters((Ticking("INA3221 VDD_IN"),), ()))
    told = page(account)
    assert told["pocketvlm:energy_meters"] == [({}, 1.0)]
    ((labels, joules),) = told["pocketvlm:energy_joules"]
    assert labels == {"meter": "INA3221 VDD_IN", "covers": "board"}
    assert page(account)["pocketvlm:energy_joules"][0][1] > joules > 0


def test_without_a_meter_there_is_no_counter_that_could_be_taken_for_zero() -> None:
    told = page(EnergyAccount(FoundMeters((), ("no RAPL",))))
    assert told["pocketvlm:energy_meters"] == [({}, 0.0)]
    assert "pocketvlm:energy_joules" not in told


def test_heat_is_shown_as_far_as_the_machine_shows_it() -> None:
    look = Heat({"tj-thermal": 49.5}, {"cpu-throttle-alert": True}, {"under-voltage": 3})
    told = told_by(HeatMetrics(lambda: look, PowerMode(2, "MAXN_SUPER", ("15W",))))
    assert told["pocketvlm:temperature_celsius"] == [({"zone": "tj-thermal"}, 49.5)]
    assert told["pocketvlm:clocks_lowered"] == [({"by": "cpu-throttle-alert"}, 1.0)]
    assert told["pocketvlm:throttle_events"] == [({"kind": "under-voltage"}, 3.0)]
    assert told["pocketvlm:power_mode"] == [({"name": "MAXN_SUPER"}, 2.0)]
    nothing = told_by(HeatMetrics(lambda: Heat({}, {}, {}), None))
    assert not [name for name in nothing if "celsius" in name or "lowered" in name or "power" in name]
