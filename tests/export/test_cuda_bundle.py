from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle
from bundle.errors import BundleError
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from export.cuda_bundle import export_for_cuda
from runtime.one_request import VisionLanguageRunner


@pytest.fixture(scope="module")
def exported(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "tiny"
    export_for_cuda(smolvlm_checkpoint, folder, name="tiny")
    return folder


def test_a_checkpoint_becomes_a_float16_bundle_and_nothing_else(exported: Path) -> None:
    manifest = open_bundle(exported, allow_ungated=True).manifest
    assert (manifest.name, manifest.target) == ("tiny", "cuda")
    assert {part.scheme for part in manifest.components.values()} == {"fp16"}
    assert {state.dtype for state in manifest.states} == {"float16"}
    decoder = manifest.components["decoder"]
    assert [spec.name for spec in decoder.optional_outputs] == ["greedy_ids"]
    assert list(exported.parent.iterdir()) == [exported]


def test_it_answers_as_the_fp32_bundle_does(exported: Path, smolvlm_bundle: Path) -> None:
    """An image among the words: bytes in, features in float16, a cache of float16."""
    found = []
    for folder in (smolvlm_bundle, exported):
        runner = VisionLanguageRunner(open_bundle(folder, allow_ungated=True))
        turns = [Turn("user", (Placeholder.IMAGE, "What is this?"))]
        found.append(runner.answer_logits(runner.prompt(turns, [canary_image()]), [5, 70, 12, 31]))
    assert np.linalg.norm(found[1] - found[0]) < 0.01 * np.linalg.norm(found[0])


def test_a_bundle_that_stands_there_is_left_alone(exported: Path, smolvlm_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="exists"):
        export_for_cuda(smolvlm_checkpoint, exported)
