from pathlib import Path

import pytest

from loadtests import smoke


@pytest.mark.slow
def test_the_edge_server_under_load_meets_the_smoke_objectives(
    smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path
) -> None:
    bundles = [str(smolvlm_bundle), str(clip_bundle)]
    code = smoke.main([*bundles, "--target", "edge", "--duration-s", "3", "--output", str(tmp_path)])
    assert code == 0
    assert (tmp_path / "edge" / "report.html").stat().st_size > 0


def test_a_server_that_cannot_start_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([str(tmp_path / "absent"), "--target", "edge", "--output", str(tmp_path / "out")]) == 1
    assert "server.log" in capsys.readouterr().err
