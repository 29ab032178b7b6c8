from __future__ import annotations

import pytest

from quant import kernel_times


def test_every_form_is_timed_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(kernel_times, "_TURNS", 2)
    kernel_times.main(["64", "48", "--rows", "1", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(label in lines[0] for label in kernel_times.FORMS)
    assert all(float(value) > 0 for line in lines[1:] for value in line.split("=")[1].split()[1:])


def test_a_shape_of_one_number_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        kernel_times.main(["64"])
    assert "two numbers" in capsys.readouterr().err
