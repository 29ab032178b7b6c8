"""Bundles of the format before this one are read, and answer as the same graphs do in this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import MANIFEST, Bundle, open_bundle, read_manifest, sha256_of
from bundle.errors import BundleFormatError
from graphs.lowering.last_queries import drop_last_queries
from graphs.store import open_graph, save_graph
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner

RECORDED = Path(__file__).parents[1] / "data" / "manifest-format-1.json"
"""What `pocketvlm export` 0.1.0 wrote of a tiny SmolVLM before format 2."""


def test_a_manifest_that_the_older_version_wrote_is_read(tmp_path: Path) -> None:
    shutil.copyfile(RECORDED, tmp_path / MANIFEST)
    manifest = read_manifest(tmp_path)
    decoder = manifest.components["decoder"]
    assert (decoder.role, decoder.phase, manifest.graph("decoder", "prompt")) == ("decoder", "any", "decoder")
    assert [spec.name for spec in decoder.inputs] == ["inputs_embeds", "position_ids", "past_lengths", "logits_indices"]
    assert [spec.name for spec in decoder.outputs] == ["logits"]
    assert {(state.kind, state.group, state.shape) for state in manifest.states} == {("rows", 0, ("B", 2, "S", 8))}
    assert [(state.input, state.output) for state in manifest.states[:2]] == [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
    ]
    assert [(state.layer, state.part) for state in manifest.states[1:3]] == [(0, "value"), (1, "key")]
    assert manifest.num_length_groups == 1


@pytest.mark.parametrize("change", [{"components": None}, {"components": {"decoder": {}}}, {"decoder": [1]}])
def test_a_broken_manifest_of_the_older_format_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(json.loads(RECORDED.read_text()) | change))
    with pytest.raises(BundleFormatError, match="reads formats 1 and 2"):
        read_manifest(tmp_path)


def as_format_1(bundle: Path, target: Path) -> Path:
    """Return a copy as format 1 had it: lengths without groups, the cache among the decoder's tensors."""
    shutil.copytree(bundle, target)
    model = open_graph(bundle / "decoder.onnx")
    lengths = next(value for value in model.graph.inputs if value.name == "past_lengths")
    grouped = ir.Value(name="grouped", type=lengths.type, shape=lengths.shape)
    lengths.replace_all_uses_with(grouped)
    lengths.shape = ir.Shape(["B"])
    axes = ir.Value(name="axis", const_value=ir.tensor(np.array([0]), name="axis"))
    model.graph.register_initializer(axes)
    model.graph.insert_before(model.graph[0], ir.Node("", "Unsqueeze", [lengths, axes], outputs=[grouped]))
    drop_last_queries(model)
    save_graph(model, target / "decoder.onnx")
    raw = json.loads((target / MANIFEST).read_text())
    states = raw.pop("states")
    decoder = raw["components"]["decoder"]
    for spec in decoder["inputs"]:
        if spec["name"] == "past_lengths":
            spec["shape"] = ["B"]
    for side, specs in (("input", decoder["inputs"]), ("output", decoder["outputs"])):
        specs += [{"name": state[side], "dtype": state["dtype"], "shape": state["shape"]} for state in states]
    for part in raw["components"].values():
        for field in ("role", "phase", "optional_inputs", "optional_outputs"):
            del part[field]
    raw["decoder"] |= {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_size": 8, "kv_dtype": "float32"}
    for file in ("decoder.onnx", "decoder.onnx.data"):
        path = target / file
        raw["files"][file] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (target / MANIFEST).write_text(json.dumps(raw | {"format_version": 1}))
    return target


def test_a_bundle_of_the_older_format_answers_as_it_did(smolvlm_bundle: Path, tmp_path: Path) -> None:
    older = open_bundle(as_format_1(smolvlm_bundle, tmp_path / "older"))
    assert older.manifest.states == read_manifest(smolvlm_bundle).states
    prompt = FilledPrompt.of_ids(np.arange(6, 30))
    found = [answer(bundle, prompt) for bundle in (older, open_bundle(smolvlm_bundle))]
    np.testing.assert_array_equal(*found)


def answer(bundle: Bundle, prompt: FilledPrompt) -> np.ndarray:
    return VisionLanguageRunner(bundle).answer_logits(prompt, [5, 6, 7, 8])
