from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle, seal
from bundle.errors import BundleFileError, MachineError
from bundle.golden import GOLDEN, Recording, load_golden, save_golden
from quant.quality.parity import canary_parity
from runtime.providers import has_provider
from runtime.settings import RuntimeSettings


@pytest.fixture
def bundle(smolvlm_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(smolvlm_bundle, tmp_path / "bundle"))


def test_a_parent_equals_its_own_recording(bundle: Bundle, one_thread: RuntimeSettings) -> None:
    found = canary_parity(bundle, one_thread)
    assert set(found) == {"vision_encoder", "embed_tokens", "decoder"}
    for parity in found.values():
        assert parity.cosine == pytest.approx(1, abs=1e-9)
        assert parity.max_abs < 1e-5  # the same graph on the same machine, perhaps with another number of threads


def test_the_worst_output_counts_and_states_are_outputs(bundle: Bundle, one_thread: RuntimeSettings) -> None:
    recordings = load_golden(bundle.path(GOLDEN))
    decoder, state = recordings["decoder"], bundle.manifest.states[0].output
    planted = {**decoder.outputs, state: -decoder.outputs[state]}
    save_golden(bundle.directory, {**recordings, "decoder": Recording(decoder.inputs, planted)})
    parity = canary_parity(bundle, one_thread)["decoder"]
    assert parity.cosine == pytest.approx(-1)
    assert parity.max_abs == pytest.approx(2 * np.abs(decoder.outputs[state]).max(), rel=1e-4)


def test_two_decoders_are_held_to_the_one_run_of_their_role(bundle: Bundle, one_thread: RuntimeSettings) -> None:
    decoder = bundle.manifest.components["decoder"]
    parts = {
        **bundle.manifest.components,
        "decoder": decoder.model_copy(update={"phase": "step"}),
        "another": decoder.model_copy(update={"phase": "prompt"}),
    }
    both = seal(bundle.directory, bundle.manifest.model_copy(update={"components": parts}))
    found = canary_parity(both, one_thread)
    assert found["another"] == found["decoder"]


def test_a_missing_recording_is_named(bundle: Bundle, one_thread: RuntimeSettings) -> None:
    (bundle.directory / GOLDEN).unlink()
    with pytest.raises(BundleFileError, match="missing or damaged"):
        canary_parity(bundle, one_thread)


def test_a_recording_that_the_manifest_does_not_list_is_not_trusted(
    bundle: Bundle, one_thread: RuntimeSettings
) -> None:
    files = {name: record for name, record in bundle.manifest.files.items() if name != GOLDEN}
    unlisted = Bundle(bundle.directory, bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleFileError, match=r"golden\.npz is not among the files"):
        canary_parity(unlisted, one_thread)


@pytest.mark.skipif(has_provider("cuda"), reason="this machine has CUDA")
def test_graphs_run_where_the_settings_say(bundle: Bundle) -> None:
    with pytest.raises(MachineError, match="has no CUDAExecutionProvider"):
        canary_parity(bundle, RuntimeSettings(provider="cuda"))
