"""A load test is bounded, and loads this machine unless told otherwise."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from bundle.errors import MachineError, SettingsError
from loadtests.plan import LoadPlan, check_target, require_listener


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://127.9.8.7/", "http://[::1]:80", "https://localhost:1"]
)
def test_a_loopback_url_is_accepted(url: str) -> None:
    check_target(url, allow_remote=False)


@pytest.mark.parametrize("url", ["http://192.0.2.7:8000", "http://[2001:db8::1]", "http://0.0.0.0:8000"])
def test_another_machine_is_refused_unless_allowed(url: str) -> None:
    with pytest.raises(SettingsError, match="--allow-remote"):
        check_target(url, allow_remote=False)
    check_target(url, allow_remote=True)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1/v1", "http://127.0.0.1?x=1", "http://[::1"]
    + ["http://127.0.0.1:99999", ""],
)
def test_what_is_not_a_servers_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="URL"):
        check_target(url, allow_remote=True)


def test_a_name_that_does_not_resolve_is_an_error() -> None:
    with pytest.raises(MachineError, match="does not resolve"):
        check_target("http://nowhere.invalid:80", allow_remote=False)


@pytest.mark.parametrize(
    "field",
    [{"users": 0}, {"users": 2}, {"users": 1001}, {"duration_s": 0.5}, {"duration_s": 1e6}, {"warmup_s": -1.0}]
    + [{"spawn_rate": 0.0}, {"max_requests": 0}, {"image_px": 8}, {"distinct_images": 0}, {"mix": "chat"}]
    + [{"max_tokens": 0}, {"timeout_s": 0.0}, {"seed": -1}, {"duration_s": float("nan")}],
)
def test_a_value_out_of_its_range_is_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(SettingsError, match=name):
        LoadPlan(**field)


def test_the_window_follows_the_warm_up_and_ends_where_the_run_did() -> None:
    plan = LoadPlan(warmup_s=2.0, duration_s=10.0)
    assert (plan.window(12.1).start_s, plan.window(12.1).end_s) == (2.0, 12.0)
    assert plan.window(5.0).end_s == 5.0
    assert plan.window(1.0).length_s == 0.0


def test_a_url_where_nothing_listens_is_told_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        require_listener(url)
    with pytest.raises(MachineError, match=f"nothing listens at {url}: Connection refused"):
        require_listener(url)


def test_a_bound_is_told_with_all_its_digits() -> None:
    with pytest.raises(SettingsError, match=r"max_requests 0 is out of range: it may be 1 to 10,000,000$"):
        LoadPlan(max_requests=0)
    with pytest.raises(SettingsError, match=r"spawn_rate 0 is out of range: it may be 0\.1 to 1,000$"):
        LoadPlan(spawn_rate=0)
