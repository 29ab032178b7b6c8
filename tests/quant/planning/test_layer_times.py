from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.errors import QuantizationError
from bundle.form import Form
from quant.planning import layer_times
from quant.planning.layer_times import (
    BUILTIN,
    BUILTIN_SHAPE,
    FORMS,
    LayerTimes,
    Timed,
    builtin_times,
    measure,
    tuned_times,
)
from quant.planning.plan import KEPT, Choice
from runtime import turns

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


class EvenClock:
    """A clock by which whatever is timed takes a millisecond."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def perf_counter(self) -> float:
        self._now_s += 1e-3
        return self._now_s


def test_a_large_layer_is_timed_by_a_part_and_counted_whole(monkeypatch) -> None:
    monkeypatch.setattr(turns, "time", EvenClock())
    # 4 Mi weights are run at most: half of the second layer's, and each run takes as long as any other.
    whole, halved = Timed(512, 512, KEPT, 1), Timed(512, 1 << 14, KEPT, 1)
    found = measure([whole, halved], threads=1, turns=3)
    assert found[halved.key] == pytest.approx(2 * found[whole.key])


def test_a_measurement_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = [Timed(32, 16, choice, rows) for choice in (KEPT, W8A8, INT4) for rows in (1, 4)]
    first = tuned_times(wanted, tmp_path, lines.append, threads=1)
    again = tuned_times(wanted, tmp_path, lines.append, threads=1)
    assert len(lines) == 1
    assert lines[0].startswith("timing 6 layer forms")
    assert all(first.ms(32, 16, each.choice, each.rows) == again.ms(32, 16, each.choice, each.rows) for each in wanted)
    tuned_times([*wanted, Timed(64, 16, KEPT, 1)], tmp_path, lines.append, threads=1)
    assert lines[1].startswith("timing 1 layer forms")


@pytest.mark.parametrize(
    "damage", ["", "{", "[1, 2]", '{"x": 1}', '{"32x16 fp32 M=1": "quick"}', '{"32x16 fp32 M=1": -1}']
)
def test_a_damaged_record_is_measured_again(tmp_path: Path, damage: str) -> None:
    wanted = [Timed(32, 16, KEPT, 1)]
    tuned_times(wanted, tmp_path, lambda line: None, threads=1)
    (record,) = tmp_path.iterdir()
    record.write_text(damage, encoding="utf-8")
    assert tuned_times(wanted, tmp_path, lambda line: None, threads=1).ms(32, 16, KEPT, 1) > 0
    assert json.loads(record.read_text(encoding="utf-8")).keys() == {"32x16 fp32 M=1"}


def test_a_folder_that_cannot_be_written_costs_no_more_than_the_record(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    assert tuned_times([Timed(32, 16, KEPT, 1)], file, lambda line: None, threads=1).ms(32, 16, KEPT, 1) > 0


def test_other_threads_and_cores_have_a_record_of_their_own(tmp_path: Path, monkeypatch) -> None:
    for threads in (1, 2):
        tuned_times([Timed(32, 16, KEPT, 1)], tmp_path, lambda line: None, threads=threads)
    monkeypatch.setattr(layer_times, "num_usable_cores", lambda: 77)
    tuned_times([Timed(32, 16, KEPT, 1)], tmp_path, lambda line: None, threads=1)
    assert len(list(tmp_path.iterdir())) == 3


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
