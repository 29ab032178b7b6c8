"""Systems in turns: who does what, and what becomes of those that cannot."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle.errors import MachineError, SettingsError
from loadtests.peers import __main__ as command
from loadtests.peers import models
from loadtests.peers.comparison import Plan, compare, prepare
from loadtests.peers.environments import Environment
from loadtests.peers.measures import MEASURES, Measure
from loadtests.peers.models import Models
from loadtests.peers.process import CHECKOUT
from loadtests.peers.systems import OURS, SYSTEMS, System, Workshop

CODE = """
import sys, time
from loadtests.peers.worker import serve

def work(measure):
    if measure.name in sys.argv[2:]:
        raise MemoryError("no room")
    with open(sys.argv[1], "a") as log:
        log.write(f"{sys.argv[0]} {measure.name}\\n")
    return (lambda: time.sleep(0.001)), 1

serve(lambda: {"prefill": work, "encode": work}, ())
"""
PREFILL, ENCODE = Measure("prefill-512", "prefill", 512), Measure("siglip-1", "encode", 1)


@dataclass(frozen=True)
class Fake(System):
    """Runs `CODE`."""

    code: str = CODE

    def command(self, workshop: Workshop, threads: int) -> list[str]:
        return [sys.executable, "-c", self.code, *self.arguments(workshop)]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(Models(tmp_path / "models", print), tmp_path)


def fake(
    name: str, log: Path, *failing: str, environment: Environment = OURS, code: str = CODE, kinds: str = "prefill"
) -> Fake:
    return Fake(name, environment, "", frozenset({kinds}), lambda workshop: [str(log), *failing], code)  # type: ignore[arg-type]


def run(
    workshop: Workshop, *systems: Fake, measures: tuple[Measure, ...] = (PREFILL,)
) -> tuple[list[str], dict[str, str]]:
    """Return the systems of the table, and who is absent."""
    found = compare(Plan(systems, measures, 3, 1), workshop, workshop.environments / "logs", print)
    return found.systems, dict(found.absent)


def test_systems_take_turns_and_a_first_one_is_dropped(workshop: Workshop, tmp_path: Path) -> None:
    log = tmp_path / "log"
    plan = Plan((fake("a", log), fake("b", log)), (PREFILL,), 3, 1)
    found = compare(plan, workshop, tmp_path / "logs", print)
    assert len(log.read_text().splitlines()) == 2 * (3 + 1)
    assert found.systems == ["a", "b"]
    assert found.cell("prefill-512", "a").ms.median >= 1  # type: ignore[union-attr]


def test_a_system_is_asked_for_what_it_does_alone(workshop: Workshop, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(workshop, fake("tokens", log), fake("tower", log, kinds="encode"), measures=(ENCODE, PREFILL))
    assert log.read_text().split().count("siglip-1") == log.read_text().split().count("prefill-512") == 4


def test_one_that_fails_is_left_out_of_that_measure_and_the_others_go_on(workshop: Workshop, tmp_path: Path) -> None:
    log, other = tmp_path / "log", Measure("prefill-1200", "prefill", 1200)
    systems, absent = run(workshop, fake("a", log, "prefill-512"), fake("b", log), measures=(PREFILL, other))
    assert systems == ["b", "a"]
    assert "MemoryError: no room" in absent["a"]


def test_one_that_cannot_be_opened_or_made_is_told_and_the_others_go_on(workshop: Workshop, tmp_path: Path) -> None:
    def unmade(workshop: Workshop) -> list[str]:
        raise MachineError("its model cannot be made")

    lost = Fake("lost", OURS, "", frozenset({"prefill"}), unmade)
    systems, absent = run(
        workshop, lost, fake("dead", tmp_path, code="raise SystemExit(4)"), fake("b", tmp_path / "log")
    )
    assert systems == ["b"]
    assert absent["lost"] == "its model cannot be made"
    assert "code 4" in absent["dead"]


def test_every_system_of_the_table_has_a_module_and_does_something_that_is_measured() -> None:
    kinds = {measure.kind for measure in MEASURES}
    for system in SYSTEMS.values():
        assert (CHECKOUT / "loadtests" / "peers" / f"{system.module}.py").is_file()
        assert system.kinds
        assert system.kinds <= kinds
    assert {system.name for system in SYSTEMS.values() if system.is_ours} >= {"pocketvlm-int8"}
    assert set(command._QUICK_SYSTEMS) <= SYSTEMS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "pocketvlm-int9"], "no system 'pocketvlm-int9'; did you mean pocketvlm-int"),
        (["--measures", "xyz"], "no measure 'xyz'; known: vision"),
        (["--turns", "2"], "--turns 2 is out of range: at least 3"),
    ],
)
def test_names_and_turns_are_checked_before_anything_is_made(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([*arguments, "--folder", str(tmp_path / "none")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_list_names_systems_and_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in (*SYSTEMS, *(measure.name for measure in MEASURES)))


def test_chosen_entries_keep_the_order_of_the_table() -> None:
    known = {"a": 1, "b": 2, "c": 3}
    assert command.chosen("system", ["c", "a"], known) == (1, 3)
    assert command.chosen("system", None, known) == (1, 2, 3)
    with pytest.raises(SettingsError, match="did you mean c"):
        command.chosen("system", ["cc"], known)


def test_bundles_that_other_code_wrote_are_made_anew_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        models, "_pocketvlm", lambda command, source, output, options: (made.append(output.name), output.mkdir())
    )
    monkeypatch.setattr(models, "_call", lambda script, arguments: Path(arguments[0]).mkdir())
    for digest, times in (("a", 2), ("b", 4), ("b", 4)):
        monkeypatch.setattr(models, "writers_digest", lambda digest=digest: digest)
        found = Models(tmp_path, print).bundle("int8")
        assert found == tmp_path / f"pocketvlm-{digest}" / "int8"
        assert len(made) == times  # with its parent
        assert [path.name for path in tmp_path.glob("pocketvlm-*")] == [f"pocketvlm-{digest}"]


def test_preparing_installs_and_makes_and_measures_nothing(workshop: Workshop, tmp_path: Path) -> None:
    def unmade(workshop: Workshop) -> list[str]:
        raise MachineError("no room")

    log = tmp_path / "log"
    systems = (fake("a", log), Fake("lost", OURS, "", frozenset({"prefill"}), unmade))
    assert prepare(Plan(systems, (PREFILL,), 3, 1), workshop, print) == {"lost": "no room"}
    assert not log.exists()


def test_what_is_made_appears_when_it_is_whole_and_is_made_once(tmp_path: Path) -> None:
    kept, made = Models(tmp_path, print), []

    def fail(path: Path) -> None:
        path.mkdir()
        raise MachineError("half way")

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("whole")

    with pytest.raises(MachineError):
        kept.made("bundle", fail)
    assert not (tmp_path / "bundle").exists()
    assert [kept.made("bundle", make) for _ in range(2)] == [tmp_path / "bundle"] * 2
    assert len(made) == 1
    assert (tmp_path / "bundle").read_text() == "whole"
