import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle, read_manifest, seal
from bundle.errors import GoldenError
from bundle.gates import Gate
from bundle.golden import GOLDEN, Recording, load_golden, save_golden
from runtime.canary import check_canary
from runtime.session import Session
from runtime.settings import RuntimeSettings


@pytest.fixture
def copied(smolvlm_bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smolvlm_bundle, tmp_path / "bundle"))


def sessions(bundle: Bundle) -> dict[str, Session]:
    settings = RuntimeSettings(intra_threads=1)
    return {name: Session(bundle, name, settings) for name in bundle.manifest.components}


def disturb(directory: Path, role: str, output: str, noise: float) -> Bundle:
    """Add noise, relative to the largest value, to a recorded output; return the sealed bundle."""
    recordings = load_golden(directory / GOLDEN)
    recording = recordings[role]
    array = recording.outputs[output]
    wrong = array + noise * np.abs(array).max() * np.random.default_rng(0).normal(size=array.shape)
    changed = Recording(recording.inputs, {**recording.outputs, output: wrong.astype(array.dtype)})
    save_golden(directory, {**recordings, role: changed})
    return seal(directory, read_manifest(directory))


def test_a_fresh_export_passes(copied) -> None:
    bundle = open_bundle(copied)
    assert GOLDEN in bundle.manifest.files
    check_canary(bundle, sessions(bundle))


@pytest.mark.parametrize(
    ("role", "output"), [("vision_encoder", "image_features"), ("decoder", "logits"), ("decoder", "present.0.key")]
)
def test_a_graph_that_computes_something_else_is_refused_by_name(copied, role, output) -> None:
    bundle = disturb(copied, role, output, 0.01)
    with pytest.raises(GoldenError, match=f"{role}: output {output}"):
        check_canary(bundle, sessions(bundle))


@pytest.mark.parametrize(
    ("noise", "limit", "is_accepted"), [(0.02, None, True), (20.0, None, False), (0.2, 0.5, True), (0.2, 0.99, False)]
)
def test_a_quantized_graph_is_held_to_the_limit_it_was_made_with(copied, noise, limit, is_accepted) -> None:
    manifest = disturb(copied, "decoder", "logits", noise).manifest
    decoder = manifest.components["decoder"].model_copy(update={"scheme": "int8"})
    gate = Gate(name="canary_cosine/decoder", value=1, limit=limit or 0, direction="min", n=1, passed=True)
    changes = {"components": {**manifest.components, "decoder": decoder}, "gates": (gate,) if limit else ()}
    bundle = Bundle(copied, manifest.model_copy(update=changes))
    if is_accepted:
        check_canary(bundle, sessions(bundle))
        return
    with pytest.raises(GoldenError, match="int8 graph has cosine"):
        check_canary(bundle, sessions(bundle))


def test_a_bundle_without_a_recording_is_loaded_and_logged(copied, caplog) -> None:
    manifest = open_bundle(copied).manifest
    bare = manifest.model_copy(update={"files": {n: r for n, r in manifest.files.items() if n != GOLDEN}})
    check_canary(Bundle(copied, bare), {})
    assert "are not checked on this machine" in caplog.text
