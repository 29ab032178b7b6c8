from pathlib import Path
from urllib.request import urlopen

import pytest

from bundle.errors import MachineError
from serving.process import running_server


def test_a_server_answers_inside_the_block_and_is_gone_after_it(clip_bundle: Path, tmp_path: Path) -> None:
    with (
        running_server("serve", [str(clip_bundle)], tmp_path / "log") as server,
        urlopen(f"{server.url}/health/ready", timeout=5) as response,
    ):
        assert response.status == 200
    with pytest.raises(OSError, match="refused"):
        urlopen(f"{server.url}/health/ready", timeout=5)


def test_a_server_that_cannot_start_is_an_error_naming_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(MachineError, match="log"), running_server("serve", [str(tmp_path / "absent")], log):
        pass
    assert "is not a bundle" in log.read_text()
