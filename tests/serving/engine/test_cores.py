from pathlib import Path

import pytest

from serving.engine.cores import num_granted_cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("", None)],
)
def test_a_containers_limit_is_read_in_cores_rounded_up(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert num_granted_cores(tmp_path / "cpu.max") == expected


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert num_granted_cores(tmp_path / "absent") is None
