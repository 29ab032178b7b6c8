"""Servers to attack, and the table of what the attacks did to them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one, which scripts import by the same names

from damage import Record, table, write_json
from victim import Figures, Victim, running_victim, serve_command

_RECORD = pytest.StashKey[Record]()
_SPENT_MB = 60.0
"""A server that holds so much more than at its start would hide what the next attack costs."""
_SETTLE_S = 3.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's own options; they exist where the suite is named on the command line, as `make attack` does."""
    group = parser.getgroup("attacks")
    group.addoption("--attacks", action="store_true", help="run the attacks that take long, too")
    group.addoption("--attack-json", type=Path, default=None, help="write the table to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[_RECORD] = Record()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long attacks unless they are asked for: `make attack`, or `-m attack`."""
    if config.getoption("--attacks", default=False) or "attack" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("attack")]
    items[:] = [item for item in items if not item.get_closest_marker("attack")]
    config.hook.pytest_deselected(items=long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where asked."""
    rows = config.stash[_RECORD].rows
    if rows and config.getoption("--attacks", default=False):
        terminalreporter.section("attacks")
        for line in table(rows):
            terminalreporter.line(line)
    if rows and (path := config.getoption("--attack-json", default=None)):
        write_json(rows, path)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server that nobody attacks."""
    log = tmp_path_factory.mktemp("twin") / "server.log"
    with running_victim(serve_command([], "fake_server.py"), log) as victim:
        yield victim


@pytest.fixture
def record(request: pytest.FixtureRequest, twin: Victim) -> Record:
    """The table."""
    record = request.config.stash[_RECORD]
    record.twin_port = twin.port
    return record


Serve = Callable[..., AbstractContextManager[Victim]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`with serve(settings, ...) as victim` runs the shipped models in int8 until the block ends."""
    from attack_bundles import attacked_bundles

    def run(
        settings: Mapping[str, Any] | None = None, program: str = "", bundles: list[Path] | None = None, **options: Any
    ) -> AbstractContextManager[Victim]:
        command = serve_command(attacked_bundles() if bundles is None else bundles, program)
        return running_victim(command, tmp_path / "server.log", settings=settings, **options)

    return run


class Arena:
    """Keeps a server from one attack to the next, as long as it is as well as at its start."""

    def __init__(self, start: Callable[[], AbstractContextManager[Victim]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._victim: Victim | None = None
        self._at_start: Figures | None = None

    def victim(self) -> Victim:
        """Return a server that is well."""
        if self._victim is None or not self._is_well(self._victim):
            self.close()
            self._victim = self._stack.enter_context(self._start())
            self._at_start = self._victim.figures()
        return self._victim

    def close(self) -> None:
        """End the server."""
        self._stack.close()
        self._victim = None

    def _is_well(self, victim: Victim) -> bool:
        if not victim.is_running or victim.status("/health/ready", _SETTLE_S) != 200 or self._at_start is None:
            return False
        with contextlib.suppress(OSError):
            if victim.wait_until(victim.is_idle, _SETTLE_S) is not None:
                now = victim.figures()
                return now.memory_mb < self._at_start.memory_mb + _SPENT_MB
        return False


@pytest.fixture(scope="session")
def _arenas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Arena]]:
    folder = tmp_path_factory.mktemp("arena")

    def fake() -> AbstractContextManager[Victim]:
        command = serve_command([], "fake_server.py")
        models = {"chat_model": "fake-vlm", "embedding_model": "fake-clip"}
        return running_victim(command, folder / "fake.log", **models)

    def shipped() -> AbstractContextManager[Victim]:
        from attack_bundles import attacked_bundles

        return running_victim(serve_command(attacked_bundles()), folder / "shipped.log")

    arenas = {"fake": Arena(fake), "shipped": Arena(shipped)}
    yield arenas
    for arena in arenas.values():
        arena.close()


@pytest.fixture
def shipped(_arenas: dict[str, Arena]) -> Victim:
    """A server of the shipped models in int8, with the default settings."""
    return _arenas["shipped"].victim()


@pytest.fixture
def fake(_arenas: dict[str, Arena]) -> Victim:
    """The HTTP application alone: an engine without a model behind it."""
    return _arenas["fake"].victim()


@pytest.fixture(params=["fake", pytest.param("shipped", marks=pytest.mark.attack)])
def victim(request: pytest.FixtureRequest, _arenas: dict[str, Arena]) -> Victim:
    """Either server."""
    return _arenas[request.param].victim()
