from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import read_manifest
from bundle.errors import BundleFileError
from bundle.golden import GOLDEN, Recording, load_golden, save_golden
from quant.quality.parity import canary_parity


@pytest.fixture
def bundle(smolvlm_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(smolvlm_bundle, tmp_path / "bundle")


def test_a_parent_equals_its_own_recording(bundle: Path) -> None:
    found = canary_parity(bundle, read_manifest(bundle).components)
    assert set(found) == {"vision_encoder", "embed_tokens", "decoder"}
    for parity in found.values():
        assert parity.cosine == pytest.approx(1, abs=1e-9)
        assert parity.max_abs < 1e-5  # the same graph on the same machine, perhaps with another number of threads


def test_the_worst_output_counts(bundle: Path) -> None:
    recordings = load_golden(bundle)
    decoder = recordings["decoder"]
    planted = {**decoder.outputs, "present.0.key": -decoder.outputs["present.0.key"]}
    save_golden(bundle, {**recordings, "decoder": Recording(decoder.inputs, planted)})
    parity = canary_parity(bundle, read_manifest(bundle).components)["decoder"]
    assert parity.cosine == pytest.approx(-1)
    assert parity.max_abs == pytest.approx(2 * np.abs(decoder.outputs["present.0.key"]).max(), rel=1e-4)


def test_a_missing_recording_is_named(bundle: Path) -> None:
    (bundle / GOLDEN).unlink()
    with pytest.raises(BundleFileError, match="missing or damaged"):
        canary_parity(bundle, read_manifest(bundle).components)
