from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from quant.planning import layer_times
from quant.planning.layer_runs import Openings, Timed
from quant.planning.layer_times import BUILTIN, BUILTIN_SHAPE, FORMS, LayerTimes, builtin_times, tuned_times
from quant.planning.plan import KEPT, Choice

W8A8 = Choice("w8a8", Form(8))
INT4 = Choice("matmul_nbits", Form(4, 32))


def test_times_between_beyond_and_below_what_was_measured() -> None:
    times = LayerTimes({"64x48 fp32 M=1": 2.0, "64x48 fp32 M=100": 12.0, "64x48 fp32 M=300": 30.0}, "")
    assert times.ms(64, 48, KEPT, 1) == 2.0
    assert times.ms(64, 48, KEPT, 50.5) == pytest.approx(7.0)
    assert times.ms(64, 48, KEPT, 600) == pytest.approx(60.0)
    assert LayerTimes({"64x48 fp32 M=100": 12.0}, "").ms(64, 48, KEPT, 1) == 12.0


def test_a_shape_that_was_not_measured_takes_the_built_in_time_per_weight() -> None:
    num_inputs, num_outputs = BUILTIN_SHAPE
    assert builtin_times().ms(num_inputs, num_outputs, W8A8, 8) == BUILTIN["w8a8 8-bit"][8]
    assert builtin_times().ms(2 * num_inputs, num_outputs, W8A8, 8) == 2 * BUILTIN["w8a8 8-bit"][8]


def test_a_form_that_was_never_timed_is_named() -> None:
    with pytest.raises(QuantizationError, match="w8a8 3-bit was never timed; known: fp32"):
        builtin_times().ms(64, 48, Choice("w8a8", Form(3)), 1)


def test_the_built_in_table_holds_every_form_that_the_command_times() -> None:
    assert [choice.label for choice in FORMS] == list(BUILTIN)


def test_roundings_that_end_in_the_same_operator_share_a_time() -> None:
    times = LayerTimes({"64x48 matmul_nbits 4-bit b32 M=1": 1.5}, "")
    assert times.ms(64, 48, Choice("matmul_nbits", Form(4, 32, "gptq")), 1) == 1.5


def test_what_is_usual_is_what_was_seen_where_times_are_exact() -> None:
    exact, measured = (LayerTimes({"64x48 fp32 M=1": 2.0}, "", usual) for usual in (None, {"64x48 fp32 M=1": 2.5}))
    assert exact.usual.ms(64, 48, KEPT, 1) == 2.0
    assert (measured.ms(64, 48, KEPT, 1), measured.usual.ms(64, 48, KEPT, 1)) == (2.0, 2.5)


class Stopwatch:
    """Tells what it was given, and which layers it was asked for."""

    def __init__(self, *openings: list[float]) -> None:
        self.openings = openings
        self.asked: list[set[str]] = []

    def __call__(self, wanted: Sequence[Timed]) -> dict[str, Openings]:
        self.asked.append({timed.key for timed in wanted})
        return {timed.key: self.openings for timed in wanted}


def test_the_least_of_all_runs_and_of_a_middling_opening_are_kept(tmp_path: Path) -> None:
    stopwatch = Stopwatch([9.0, 3.0], [5.0, 6.0], [2.0, 80.0])
    for _ in range(2):
        times = tuned_times([Timed(32, 16, KEPT, 1)], tmp_path, lambda line: None, stopwatch)
        assert (times.ms(32, 16, KEPT, 1), times.usual.ms(32, 16, KEPT, 1)) == (2.0, 3.0)
    assert len(stopwatch.asked) == 1


def test_a_measurement_is_made_once_and_where_one_lacks_all_that_are_compared_are_made_in_turns(tmp_path: Path) -> None:
    lines: list[str] = []
    stopwatch = Stopwatch([1.0])
    wanted = [Timed(32, 16, choice, rows) for choice in (KEPT, W8A8, INT4) for rows in (1, 4)]
    for _ in range(2):
        tuned_times(wanted, tmp_path, lines.append, stopwatch)
    (record,) = tmp_path.iterdir()
    begun, kept = lines
    assert begun.startswith("timing 6 layer forms")
    assert kept == f"the times are kept in {record}, which may be deleted to measure again"
    more = [*wanted, Timed(64, 16, KEPT, 1)]
    tuned_times(more, tmp_path, lines.append, stopwatch)
    assert lines[2].startswith("timing 7 layer forms")
    assert stopwatch.asked == [{timed.key for timed in each} for each in (wanted, more)]


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[1, 2]", '{"x": 1}'),
        '{"x": {"least_ms": 1, "usual_ms": 1}}',
        '{"32x16 fp32 M=1": 1.0}',
        '{"32x16 fp32 M=1": {"least_ms": "quick", "usual_ms": 1}}',
        '{"32x16 fp32 M=1": {"least_ms": -1, "usual_ms": 1}}',
        '{"32x16 fp32 M=1": {"least_ms": 2, "usual_ms": 1}}',
        '{"32x16 fp32 M=1": {"least_ms": 1}}',
    ],
)
def test_a_damaged_record_is_measured_again(tmp_path: Path, damage: str) -> None:
    wanted = [Timed(32, 16, KEPT, 1)]
    tuned_times(wanted, tmp_path, lambda line: None)
    (record,) = tmp_path.iterdir()
    record.write_text(damage, encoding="utf-8")
    assert tuned_times(wanted, tmp_path, lambda line: None).ms(32, 16, KEPT, 1) > 0
    assert json.loads(record.read_text(encoding="utf-8")).keys() == {"32x16 fp32 M=1"}


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_record(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    lines: list[str] = []
    assert tuned_times([Timed(32, 16, KEPT, 1)], file, lines.append).ms(32, 16, KEPT, 1) > 0
    assert f"the times cannot be kept in {file}" in lines[1]


def test_other_cores_have_a_record_of_their_own(tmp_path: Path, monkeypatch) -> None:
    for cores in (2, 2, 77):
        monkeypatch.setattr(layer_times, "num_usable_cores", lambda cores=cores: cores)
        tuned_times([Timed(32, 16, KEPT, 1)], tmp_path, lambda line: None, Stopwatch([1.0]))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_prints_every_form_at_every_number_of_rows(capsys) -> None:
    layer_times.main(["64", "48", "--rows", "1", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(FORMS)
    assert all(line.startswith(choice.label) for line, choice in zip(lines[1:], FORMS, strict=True))
    assert all(float(value) > 0 for line in lines[1:] for value in line.split()[-2:])


def test_a_shape_of_one_number_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        layer_times.main(["64"])
    assert "two numbers" in capsys.readouterr().err
