"""The command as a caller meets it: in this process where a process of its own would prove nothing more."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from commands.ending import run

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heeded() -> Iterator[None]:
    """What a shell let this process ignore (nohup, a job in the background), its children would ignore as well."""
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


@pytest.fixture
def pocketvlm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Calls the command with arguments in this process, and says how it ended."""

    def call(*arguments: object) -> Done:
        command = ["pocketvlm", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        code = run()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(command, code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., Done]:
    """Calls the command with arguments in a process of its own; `without` names modules that it shall not find."""

    def call(*arguments: object, without: tuple[str, ...] = (), stdin: str = "") -> Done:
        program = f"import sys; sys.modules.update(dict.fromkeys({without!r})); import pocketvlm; pocketvlm.main()"
        start = ["-c", program] if without else ["-m", "pocketvlm"]
        command = [sys.executable, *start, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, input=stdin)

    return call


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path
