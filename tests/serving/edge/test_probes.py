"""Health from a thread of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from serving.edge.probes import Heartbeat, probes_answered
from serving.listener import open_listener, url_of
from serving.protocol import Health


@pytest.fixture
def heartbeat() -> Heartbeat:
    return Heartbeat(timeout_s=60)


@pytest.fixture
def url(heartbeat: Heartbeat) -> Iterator[str]:
    with open_listener("127.0.0.1", 0) as listener, probes_answered(listener, heartbeat.health):
        yield url_of(listener)


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health(is_ready=True), 200, 200),
        (Health(is_ready=False, reason="models are loading"), 200, 503),
        (Health(is_ready=False, reason="worker died", is_alive=False), 503, 503),
    ],
)
def test_the_last_health_is_told(url: str, heartbeat: Heartbeat, health: Health, live: int, ready: int) -> None:
    heartbeat.beat(health)
    answers = [httpx.get(f"{url}/health/{word}") for word in ("live", "ready")]
    assert [answer.status_code for answer in answers] == [live, ready]
    assert all(answer.json().get("reason", health.reason) == health.reason for answer in answers)
    assert httpx.head(f"{url}/health/live").status_code == live


def test_a_server_that_starts_lives_and_is_not_ready(url: str) -> None:
    assert [httpx.get(f"{url}/health/{word}").status_code for word in ("live", "ready")] == [200, 503]


def test_a_silent_loop_is_neither() -> None:
    heartbeat = Heartbeat(timeout_s=-1)
    heartbeat.beat(Health(is_ready=True))
    assert (heartbeat.health().is_alive, heartbeat.health().is_ready) == (False, False)
    assert "silent" in heartbeat.health().reason


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/health/live/x"])
def test_nothing_else_is_there(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 404
    assert httpx.post(f"{url}/health/live").status_code == 404


def test_slow_and_odd_clients_keep_nobody_waiting(url: str, heartbeat: Heartbeat) -> None:
    heartbeat.beat(Health(is_ready=True))
    host, port = url.removeprefix("http://").split(":")
    others = [socket.create_connection((host, int(port))) for _ in range(50)]
    for each in others:
        each.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
    others[0].sendall(b"a" * 10_000)
    assert httpx.get(f"{url}/health/live").status_code == 200
    for each in others:
        each.close()
