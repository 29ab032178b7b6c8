"""The shipped probes are the ones the builder makes, and ONNX Runtime here runs them."""

import onnxruntime
import pytest

from export.probes import FOLDER, PROBES


@pytest.mark.parametrize("name", PROBES)
def test_shipped_probe_is_what_its_builder_makes(name: str) -> None:
    assert (FOLDER / f"{name}.onnx").read_bytes() == PROBES[name]().SerializeToString()


def test_no_probe_is_shipped_without_a_builder() -> None:
    assert {path.stem for path in FOLDER.glob("*.onnx")} == set(PROBES)


@pytest.mark.parametrize("name", PROBES)
def test_probe_runs_without_feeds_on_the_pinned_runtime(name: str) -> None:
    session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["y"], {})[0].size > 0
