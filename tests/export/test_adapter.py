"""LoRA adapters merged at export, held to what PEFT itself makes of them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.directory import read_manifest
from bundle.errors import CheckpointError, UnsupportedConfigError
from export.adapter import CONFIG, WEIGHTS, Adapter
from export.architectures import load_family
from export.checkpoint import Checkpoint, WeightTensor
from export.exporter import export_checkpoint
from serving.oneshot import answer
from serving.protocol import Message, SamplingParams, TextPart

Weights = dict[str, WeightTensor]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": r".*text_model.*\.(q_proj|v_proj|down_proj)", "r": 4, "lora_alpha": 16},
    "tower": {"target_modules": ["q_proj", "fc1"], "r": 2, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": r".*text_model.*\.(q_proj|k_proj)",
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 9},
    },
    "whole": {"target_modules": ["v_proj"], "r": 2, "modules_to_save": ["modality_projection"]},
    "tied": {"target_modules": ["v_proj"], "r": 2, "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["out_proj"], "r": 2, "bias": "lora_only"},
}


@pytest.fixture(scope="module")
def adapted(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the folder of an adapter of random weights, and of the checkpoint that PEFT merges it into."""
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    import torch
    import transformers

    @cache
    def make(name: str) -> tuple[Path, Path]:
        with warnings.catch_warnings():
            # PEFT asks transformers by a name that is deprecated, and says what ties and bases mean for training.
            warnings.simplefilter("ignore")
            return save(name)

    def save(name: str) -> tuple[Path, Path]:
        torch.manual_seed(len(name))
        adapter, merged = (tmp_path_factory.mktemp(name) / part for part in ("adapter", "merged"))
        model = transformers.AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint, dtype=torch.float32)
        config = peft.LoraConfig(init_lora_weights=False, **SETTINGS[name])
        wrapped = peft.get_peft_model(model, config)
        for key, weight in wrapped.named_parameters():
            if "modules_to_save" in key or ("bias" in key and weight.requires_grad):
                torch.nn.init.normal_(weight, std=0.1)
        wrapped.save_pretrained(adapter)
        wrapped.merge_and_unload().save_pretrained(merged)
        return adapter, merged

    return make


def under_graph_names(folder: Path) -> tuple[Weights, tuple[tuple[str, str], ...]]:
    from export.weights import _under_graph_names

    checkpoint = Checkpoint.open(folder)
    family = load_family(checkpoint.config)
    return dict(_under_graph_names(checkpoint, family)), family.renames


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"tied"}))
def test_merged_weights_are_those_that_peft_merges(name: str, adapted, smolvlm_checkpoint: Path) -> None:
    adapter, merged = adapted(name)
    own, renames = under_graph_names(smolvlm_checkpoint)
    expected, _ = under_graph_names(merged)
    found = Adapter.open(adapter).merged(own, renames)
    assert found.keys() == expected.keys()
    changed = [key for key in own if not np.array_equal(own[key].read(), expected[key].read())]
    assert changed
    for key, tensor in found.items():
        np.testing.assert_allclose(tensor.read(), expected[key].read(), atol=1e-6, err_msg=key)
        assert tuple(tensor.shape) == tensor.read().shape


def test_a_bundle_with_an_adapter_answers_as_the_merged_checkpoint(adapted, smolvlm_checkpoint: Path, tmp_path) -> None:
    adapter, merged = adapted("plain")
    for file in smolvlm_checkpoint.iterdir():
        if not (merged / file.name).exists():
            shutil.copy(file, merged / file.name)
    export_checkpoint(smolvlm_checkpoint, tmp_path / "lora", lora=adapter)
    export_checkpoint(merged, tmp_path / "merged")
    export_checkpoint(smolvlm_checkpoint, tmp_path / "base")
    message, sampling = Message("user", (TextPart("say a word"),)), SamplingParams(max_tokens=12, temperature=0.0)
    ids = {
        name: asyncio.run(answer(tmp_path / name, message, sampling, 1)).token_ids
        for name in ("lora", "merged", "base")
    }
    assert ids["lora"] == ids["merged"] != ids["base"]
    export_checkpoint(smolvlm_checkpoint, tmp_path / "louder", lora=altered(adapter, tmp_path / "loud", lora_alpha=17))
    assert len({read_manifest(tmp_path / name).source_sha256 for name in (*ids, "louder")}) == 4


def test_a_change_of_a_head_that_is_the_table_is_refused(adapted, smolvlm_checkpoint: Path) -> None:
    tensors, renames = under_graph_names(smolvlm_checkpoint)
    with pytest.raises(CheckpointError, match=r"changes 1 weights that the checkpoint lacks: lm_head\.weight"):
        Adapter.open(adapted("tied")[0]).merged(tensors, renames)


def altered(adapter: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "is of 'IA3'; LORA is merged"),
        ({"use_dora": True}, "sets use_dora, which cannot be merged"),
        ({"layer_replication": [[0, 1]]}, "sets layer_replication"),
        ({"use_bdlora": {"nblocks": 2}}, "sets use_bdlora"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4': what the adapter began with was taken out of the"),
        ({"init_lora_weights": "OLoRA"}, "path_initial_model_for_weight_conversion"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(adapted, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    adapter, _ = adapted("plain")
    with pytest.raises(UnsupportedConfigError, match=words):
        Adapter.open(altered(adapter, tmp_path / "other", **settings))


def test_an_adapter_of_another_model_is_refused(
    adapted, clip_checkpoint: Path, smolvlm_checkpoint: Path, tmp_path
) -> None:
    adapter = Adapter.open(adapted("plain")[0])
    tensors, renames = under_graph_names(clip_checkpoint)
    with pytest.raises(CheckpointError, match=r"changes \d+ weights that the checkpoint lacks: .*text_model"):
        adapter.merged(tensors, renames)
    own, renames = under_graph_names(smolvlm_checkpoint)
    key = next(name for name in own if name.endswith("q_proj.weight") and "text_model" in name)
    narrow = own | {key: own[next(name for name in own if name.endswith("embed_tokens.weight"))]}
    with pytest.raises(CheckpointError, match=r"changes .*q_proj.weight by .*, and the checkpoint's is"):
        adapter.merged(narrow, renames)
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        Adapter.open(tmp_path)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=f"lacks {re.escape(WEIGHTS)}"):
        Adapter.open(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": None}, {"lora_alpha": "NaN"}, {"alpha_pattern": {"(": 2}}, {"alpha_pattern": ["q"]}]
)
def test_an_alpha_that_is_no_number_is_refused(adapted, smolvlm_checkpoint: Path, tmp_path, settings: Any) -> None:
    tensors, renames = under_graph_names(smolvlm_checkpoint)
    adapter = Adapter.open(altered(adapted("plain")[0], tmp_path / "other", **settings))
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'other' / CONFIG} s")):
        adapter.merged(tensors, renames)


def test_a_second_matrix_without_its_first_is_refused(adapted, smolvlm_checkpoint: Path, tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors, renames = under_graph_names(smolvlm_checkpoint)
    folder = altered(adapted("plain")[0], tmp_path / "other")
    weights = load_file(folder / WEIGHTS)
    del weights[next(key for key in weights if ".lora_A." in key)]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds .*lora_B\.weight without its lora_A"):
        Adapter.open(folder).merged(tensors, renames)
    with pytest.raises(UnsupportedConfigError, match=r"lora_B\.weight has no first matrix"):
        Adapter.open(folder).changes(renames)
