"""The checkpoints that tests/checkpoints.py writes by itself are what transformers would have saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bundle.directory import read_manifest
from export.exporter import export_checkpoint

FAMILIES = ("smolvlm", "clip", "siglip", "llava-clip-llama", "llava-siglip-qwen2")
BUNDLE_FILES = ("*.onnx", "*.onnx.data", "preprocessor.json", "generation.json", "chat_template.jinja")


@dataclass(frozen=True)
class Saved:
    """A checkpoint as written here, and as transformers saves it after loading it."""

    ours: Path
    theirs: Path


@pytest.fixture(scope="module", params=FAMILIES)
def saved(
    request: pytest.FixtureRequest,
    checkpoint_of: Callable[[str], Path],
    load_reference: Callable[[Path], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Saved:
    from transformers import AutoProcessor

    ours = checkpoint_of(request.param)
    theirs = tmp_path_factory.mktemp("theirs") / ours.name
    load_reference(ours).save_pretrained(theirs)
    AutoProcessor.from_pretrained(ours, backend="pil").save_pretrained(theirs)
    return Saved(ours, theirs)


def test_transformers_saves_the_same_files(saved: Saved) -> None:
    assert {path.name for path in saved.ours.iterdir()} == {path.name for path in saved.theirs.iterdir()}


def test_transformers_saves_the_same_weights_under_the_same_names(saved: Saved) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (saved.ours, saved.theirs))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], strict=True)


def test_transformers_saves_every_setting_with_the_same_value(saved: Saved) -> None:
    """And more: what is left out here has its default."""
    for path in saved.ours.glob("*config.json"):
        assert_within(json.loads(path.read_text()), json.loads((saved.theirs / path.name).read_text()))


def assert_within(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in ours.items():
        if isinstance(value, dict):
            assert_within(value, theirs[key])
        else:
            assert theirs[key] == value, key


def test_both_export_to_the_same_bundle(saved: Saved, bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    ours = bundle_of(saved.ours.name.removeprefix("tiny-"))
    export_checkpoint(saved.theirs, tmp_path / "bundle")
    for path in (path for pattern in BUNDLE_FILES for path in ours.glob(pattern)):
        assert (tmp_path / "bundle" / path.name).read_bytes() == path.read_bytes(), path.name
    manifests = [
        read_manifest(folder).model_dump(exclude={"files", "source_sha256", "name"})
        for folder in (ours, tmp_path / "bundle")
    ]
    assert manifests[0] == manifests[1]


def test_tokenizers_cut_texts_alike(saved: Saved) -> None:
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (saved.ours, saved.theirs))
    for text in ("a CAT's 2 tails", "<image>naïve<end_of_utterance>", "  two  spaces", ""):
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_a_preset_loads_with_every_weight_in_half_precision(
    checkpoints: ModuleType, load_reference: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = checkpoints.smolvlm_config({"attention_bias": True, "mlp_bias": True}, tie_word_embeddings=False)
    monkeypatch.setitem(checkpoints.PRESETS, "small", lambda: small)
    num_weights = checkpoints.save_preset(tmp_path / "small", "small", splits=False)
    model = load_reference(tmp_path / "small")
    assert sum(weight.numel() for weight in model.parameters()) == num_weights
    assert {str(weight.dtype) for weight in model.parameters()} == {"torch.bfloat16"}


def test_a_weight_that_is_left_out_is_seen(
    checkpoint_of: Callable[[str], Path], load_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    """The loading above is strict."""
    from safetensors.numpy import save_file

    folder = shutil.copytree(checkpoint_of("clip"), tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"text_projection\.weight"):
        load_reference(folder)
