"""The unit of the edge server, as systemd itself reads it, and against the server that it starts."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from commands.app import app
from serving.settings import ServerSettings

UNITS = Path(__file__).resolve().parents[2] / "systemd"
MOST_EXPOSED = 3.0
"""Of systemd's scale from 0 to 10; a unit that says nothing has 9.6."""


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, which needs no running systemd for these."""
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("needs systemd-analyze, of Debian's package systemd")
    return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, check=False)


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser says to keep capitals
    parser.read(UNITS / "pocketvlm.service", encoding="utf-8")
    return parser


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with its drop-in, its command being one that is here."""
    text = (UNITS / "pocketvlm.service").read_text(encoding="utf-8")
    command = unit()["Service"]["ExecStart"].split()[0]
    assert text.count(command) == 1
    made = tmp_path / "pocketvlm.service"
    made.write_text(text.replace(command, "/bin/true"), encoding="utf-8")
    (tmp_path / "pocketvlm.service.d").mkdir()
    shutil.copy(UNITS / "gpu.conf", tmp_path / "pocketvlm.service.d")
    return made


def test_systemd_finds_nothing_wrong_with_it(installed: Path) -> None:
    done = analyze("verify", "--man=no", installed)
    said = [line for line in done.stderr.splitlines() if "pocketvlm" in line]
    assert said == []
    broken = installed.read_text(encoding="utf-8").replace("PrivateTmp=yes", "PrivateTemp=yes")
    installed.write_text(broken, encoding="utf-8")
    assert "PrivateTemp" in analyze("verify", "--man=no", installed).stderr


def test_it_is_locked_up(installed: Path) -> None:
    shutil.rmtree(installed.with_name("pocketvlm.service.d"))
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED * 10:.0f}", installed)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd judges no unit that is not loaded")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-400:]


def test_its_command_is_one_that_the_program_takes() -> None:
    _, name, *arguments = shlex.split(unit()["Service"]["ExecStart"])
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, arguments).params
    assert str(given["config"]) == "/etc/pocketvlm/server.toml"
    assert [str(bundle) for bundle in given["bundles"]] == ["/srv/pocketvlm/vlm/current"]


def test_it_waits_for_the_drain_and_for_engines() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"].removesuffix("s")) > ServerSettings().drain_timeout_s + 10
    assert service["Type"] == "notify"
    assert float(service["WatchdogSec"].removesuffix("s")) >= 4 * 0.5  # it is fed twice a second
