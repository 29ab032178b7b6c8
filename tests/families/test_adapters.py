"""Adapters beside the weights of odd families: through one, graphs give what those of the merged checkpoint give."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file

from bundle.directory import open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)
RANK = 2
DECODERS = {
    "lfm2_vl": r".*language_model\.layers.*_proj\.weight",  # convolutions and their states
    "qwen2_vl": r".*(language_model|model)\.layers.*_proj\.weight",  # biases, three axes of positions
}
PACKED = r".*vision.*(qkv|fc1|dense)\.weight"
EXPERTS = r".*experts\.\d\.up_proj\.weight"


def save_pair(checkpoint: Path, folder: Path, pattern: str) -> dict[str, Path]:
    """Write an adapter of random matrices for the weights that a pattern names, and the checkpoint with it merged."""
    rng, changes = np.random.default_rng(5), {}
    shutil.copytree(checkpoint, folder / "merged")
    for file in sorted((folder / "merged").glob("*.safetensors")):
        weights = load_file(file)
        for name in (name for name, weight in weights.items() if re.fullmatch(pattern, name) and weight.ndim == 2):
            up, down = (
                0.2 * rng.standard_normal(size) for size in ((len(weights[name]), RANK), (RANK, weights[name].shape[1]))
            )
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            changes |= {
                f"{stem}.lora_A.weight": down.astype(np.float32),
                f"{stem}.lora_B.weight": up.astype(np.float32),
            }
            weights[name] = (weights[name] + 2 * up.astype(np.float32) @ down.astype(np.float32)).astype(np.float32)
        save_file(weights, file, {"format": "pt"})
    assert changes
    (folder / "adapter").mkdir()
    save_file(changes, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return {name: folder / name for name in ("adapter", "merged")}


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_those_of_the_merged_checkpoint(
    family: str, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = sample_of(family, 0).checkpoint
    made = save_pair(checkpoint, tmp_path, DECODERS[family])
    export_checkpoint(checkpoint, tmp_path / "beside", name="tiny", adapters={"a": made["adapter"]})
    export_checkpoint(made["merged"], tmp_path / "whole", name="tiny")
    image, text = conversations["one image"]
    found = []
    for folder, number in (("whole", 0), ("beside", 1), ("beside", 0)):
        runner = VisionLanguageRunner(open_bundle(tmp_path / folder), SETTINGS)
        prompt = replace(runner.prompt([Turn("user", (Placeholder.IMAGE, text))], [image]), adapter=number)
        found.append(runner.forced_logits(runner.prefill(prompt, 8), [5, 9, 3, 7, 11, 4]))
    assert_allclose(found[1], found[0], atol=1e-3)
    assert np.abs(found[2] - found[0]).max() > 0.1


def test_packed_projections_of_a_tower_are_changed_one_by_one(sample_of: Any, tmp_path: Path) -> None:
    checkpoint = sample_of("internvl_vit", 0).checkpoint
    made = save_pair(checkpoint, tmp_path, PACKED)
    export_checkpoint(checkpoint, tmp_path / "beside", name="tiny", adapters={"a": made["adapter"]})
    export_checkpoint(made["merged"], tmp_path / "whole", name="tiny")
    export_checkpoint(checkpoint, tmp_path / "into", name="tiny", lora=made["adapter"])
    pixels, found = None, []
    for folder, number in (("whole", None), ("beside", (1,)), ("beside", None), ("into", None)):
        encoder = open_encoder(open_bundle(tmp_path / folder), "vision_encoder", SETTINGS)
        if pixels is None:
            _, channels, height, width = encoder.component.inputs[0].shape
            pixels = np.random.default_rng(3).standard_normal((2, channels, height, width)).astype(np.float32)
        found.append(encode_images(encoder, [[pixels]], 4, questions=[number])[0])
    assert_allclose(found[1], found[0], atol=1e-3)
    assert_allclose(found[3], found[0], atol=1e-3)
    assert np.abs(found[2] - found[0]).max() > 0.1


def test_experts_that_run_tokens_of_all_sequences_are_refused_and_run_where_all_are_computed(
    sample_of: Any, tmp_path: Path
) -> None:
    checkpoint = sample_of("llava_stablelm_dynmoe", 0).checkpoint
    adapter = save_pair(checkpoint, tmp_path, EXPERTS)["adapter"]
    with pytest.raises(UnsupportedConfigError, match="an expert that runs the tokens of all sequences"):
        export_checkpoint(checkpoint, tmp_path / "contrib", adapters={"a": adapter})
    export_checkpoint(checkpoint, tmp_path / "portable", dialect="portable", adapters={"a": adapter})


def test_matrices_that_another_graph_reads_as_well_are_refused(sample_of: Any, tmp_path: Path) -> None:
    """T5Gemma 2 has one matrix of keys for tokens of the answer and for the encoder's, which another graph makes."""
    checkpoint = sample_of("t5gemma2", 0).checkpoint
    adapter = save_pair(checkpoint, tmp_path, r".*decoder\.layers\.0\.self_attn\.[qk]_proj\.weight")["adapter"]
    with pytest.raises(UnsupportedConfigError, match=r"changes model\.decoder\.layers\.0\.self_attn\.k_proj\.weight:"):
        export_checkpoint(checkpoint, tmp_path / "bundle", adapters={"a": adapter})
