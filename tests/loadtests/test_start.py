"""What a start takes, of a tiny server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import read_manifest
from loadtests.start import Start, main, measured_start, told


def test_a_start_is_timed_and_weighed(clip_bundle: Path) -> None:
    start = measured_start([clip_bundle], ["--threads=1"])
    assert start.processor_s > 0
    assert start.ready_s > 0
    assert start.weight_bytes == read_manifest(clip_bundle).weight_bytes
    assert 0 < start.anonymous_bytes < start.resident_bytes
    assert 10 << 20 < start.beside_weights_bytes < 2 << 30


def test_the_line_tells_medians() -> None:
    starts = [Start(ready_s, 1.5, 300 << 20, 100 << 20, 16 << 20) for ready_s in (9.0, 2.0, 1.0)]
    assert told(starts).startswith(
        "3 starts: ready in 2.0 s (1.5 s of a processor), 300 MiB resident, 284 MiB beside 16"
    )


def test_a_server_that_does_not_start_is_told(tmp_path: Path, clip_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(clip_bundle), "--flag=--no-such-flag"]) == 1
    assert "ended with exit code 2" in capsys.readouterr().err
