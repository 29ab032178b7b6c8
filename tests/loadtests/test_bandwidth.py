"""What a step reads is counted, and a share of memory's bandwidth is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtests.bandwidth import main


def test_a_step_reads_every_weight_and_all_cached_rows(
    smolvlm_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtests.bandwidth._ARRAY_BYTES", 1 << 22)
    options = ["--threads", "1", "--cached", "100", "--sequences", "2", "--turns", "1"]
    assert main([str(smolvlm_bundle), *options]) == 0
    [num_bytes] = re.findall(r"a step reads (\d+) bytes in", text := capsys.readouterr().out)
    graph = onnx.load(smolvlm_bundle / "decoder.onnx").graph
    weights = sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer)
    cache = [each for each in graph.input if "past" in each.name]
    rows = sum(int(np.prod([each.dim_value for each in value.type.tensor_type.shape.dim][1::2])) for value in cache)
    assert int(num_bytes) == weights + 2 * 100 * 4 * rows
    assert re.search(r"memory gives \d+\.\d GB/s: \d+%", text)


def test_a_model_that_does_not_answer_is_refused(clip_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(clip_bundle)]) == 1
    assert "has no decoder" in capsys.readouterr().err
