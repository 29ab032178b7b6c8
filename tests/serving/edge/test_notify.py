"""systemd is told what it asked to be told, by its own protocol, and nothing where it is not there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.edge.notify import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd would listen at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def heard(manager: socket.socket) -> str:
    return manager.recv(100).decode()


def test_it_says_what_the_unit_asked_for(manager: socket.socket, tmp_path: Path) -> None:
    watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    told = ServiceManager(watched)
    for say in (told.ready, told.alive, told.stopping):
        say()
    assert [heard(manager) for _ in range(3)] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}])
def test_no_watchdog_is_fed_that_is_not_this_process(manager: socket.socket, tmp_path: Path, watchdog) -> None:
    told = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), **watchdog})
    told.alive()
    told.ready()
    assert heard(manager) == "READY=1"


def test_a_socket_in_the_abstract_namespace_is_reached() -> None:
    name = f"pocketvlm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert listening.recv(100) == b"READY=1"


def test_a_socket_whose_path_holds_an_at_sign_is_no_abstract_one(tmp_path: Path) -> None:
    address = tmp_path / "user@1000"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(10)
        listening.bind(str(address))
        ServiceManager({"NOTIFY_SOCKET": str(address)}).ready()
        assert listening.recv(100) == b"READY=1"


def test_without_systemd_and_with_one_that_is_gone_the_server_goes_on(tmp_path: Path, caplog) -> None:
    ServiceManager({}).ready()
    assert caplog.text == ""
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "systemd was not told READY=1" in caplog.text


SERVER = """
import asyncio
from serving.edge.serve import run_server
from serving.fake import FakeClient
from serving.listener import open_listener
from serving.settings import ServerSettings

with open_listener("127.0.0.1", 0) as listener:
    asyncio.run(run_server(FakeClient(), ServerSettings(drain_timeout_s=0), listener, print))
"""


def test_a_server_says_that_it_is_ready_alive_and_stopping(manager: socket.socket, tmp_path: Path) -> None:
    manager.settimeout(120)
    unit = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", SERVER], env={**os.environ, **unit}) as process:
        while not {"READY=1", "WATCHDOG=1"} <= set(said):
            said.append(heard(manager))
        assert "STOPPING=1" not in said
        process.terminate()
        while "STOPPING=1" not in said:
            said.append(heard(manager))
    assert process.returncode == 0
