"""A variant is measured where it will serve; where this machine cannot, it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.manifest import Manifest, Target
from bundle.report import read_report
from quant import quantizer
from quant.planning.draft import Options
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.graph import Graph
from runtime.providers import has_provider
from runtime.settings import Provider, RuntimeSettings

TOLD = "quality on cuda: this machine has no cuda, so it is measured on the CPU"


@pytest.fixture
def samples(asked: type, captioned: type) -> Evaluation:
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    captions = [captioned(image, f"picture {at}") for at, image in enumerate(images)]
    return Evaluation(questions=[asked("yes", (image,)) for image in images], captions=captions)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> list[Provider]:
    """Where each graph that a test opens was to run, token tables aside, which run on the host; all run on the CPU."""
    asked_for: list[Provider] = []
    opened = Graph.__init__

    def watched(graph: Graph, source: Any, settings: RuntimeSettings, **options: Any) -> None:
        if not str(source).endswith("embed_tokens.onnx"):
            asked_for.append(settings.provider)
        opened(graph, source, settings.model_copy(update={"provider": "cpu"}), **options)

    monkeypatch.setattr(Graph, "__init__", watched)
    return asked_for


def quantized(bundle: Path, folder: Path, target: Target, samples: Evaluation) -> tuple[Manifest, list[str]]:
    """Return a variant and what was told while it was made."""
    told: list[str] = []
    manifest = quantize_bundle(
        bundle,
        folder,
        weights="int4",
        options=Options(target=target),
        evaluation=samples,
        limits={"accuracy_loss_points/high": 100},  # three samples
        progress=told.append,
    )
    return manifest, told


@pytest.mark.skipif(has_provider("cuda"), reason="this machine has CUDA")
def test_a_variant_for_cuda_is_measured_on_the_cpu_of_a_machine_without_it_and_that_is_told_first(
    smolvlm_bundle: Path, tmp_path: Path, samples: Evaluation, providers: list[Provider]
) -> None:
    manifest, told = quantized(smolvlm_bundle, tmp_path / "out", "cuda", samples)
    assert told[0].startswith(TOLD)
    assert told[0] in read_report(open_bundle(tmp_path / "out", allow_ungated=True)).not_measured
    assert manifest.target == "cuda"
    assert set(providers) == {"cpu"}
    assert {gate.basis for gate in manifest.gates} == {"canary", "samples"}


@pytest.mark.parametrize("family", ["smolvlm", "clip"])
@pytest.mark.parametrize(
    ("target", "has_cuda", "provider"),
    [("cpu", False, "cpu"), ("cpu", True, "cpu"), ("cuda", False, "cpu"), ("cuda", True, "cuda")],
)
def test_what_is_measured_of_a_variant_runs_where_the_variant_will_serve_if_it_can(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    samples: Evaluation,
    providers: list[Provider],
    family: str,
    target: Target,
    has_cuda: bool,
    provider: Provider,
) -> None:
    monkeypatch.setattr(quantizer, "runs_here", lambda wanted: wanted == "cpu" or has_cuda)
    bundle = request.getfixturevalue(f"{family}_bundle")
    manifest, told = quantized(bundle, tmp_path / "out", target, samples)
    assert {gate.basis for gate in manifest.gates} == {"canary", "samples"}
    has_decoder = family == "smolvlm"  # whose float32 parent has no attention on CUDA, and whose table is on the host
    assert set(providers) == {provider} | ({"cpu"} if has_decoder else set())
    assert sum(line.startswith(TOLD) for line in told) == (provider != target)
