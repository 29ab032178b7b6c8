"""From checkpoint folder to bundle folder: what is written, recorded, and refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from bundle.directory import open_bundle, read_manifest
from bundle.errors import BundleError, CheckpointError, UnknownArchitectureError, UnsupportedConfigError
from bundle.generation import GENERATION, SamplingDefaults
from bundle.golden import GOLDEN, check, load_golden
from export.architectures import ARCHITECTURES
from export.exporter import export_checkpoint

ROOT = Path(__file__).parents[2]
AXES = {"B", "T", "S", "N", "I", "W"}


@pytest.fixture(params=["smolvlm", "clip"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_bundle")


def with_config(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """Copy a checkpoint with its config changed; a dict changes a nested config."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            config[key].update(value)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_bundle_opens_and_holds_every_file(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    for part in manifest.components:
        assert {f"{part}.onnx", f"{part}.onnx.data"} <= set(manifest.files)
    assert {"tokenizer.json", "preprocessor.json", "golden.npz"} <= set(manifest.files)
    assert set(manifest.files) == {path.name for path in bundle.iterdir()} - {"manifest.json"}


def test_graphs_have_the_signature_that_the_manifest_states(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    for component in manifest.components.values():
        graph = onnx.load(bundle / component.file, load_external_data=False).graph
        states = manifest.states if component.role == "decoder" else ()
        taken = [(spec.name, spec.dtype, spec.shape) for spec in component.inputs]
        outputs = (*component.outputs, *component.optional_outputs)
        given = [(spec.name, spec.dtype, spec.shape) for spec in outputs]
        assert [described(value) for value in graph.input] == taken + [(s.input, s.dtype, s.shape) for s in states]
        assert [described(value) for value in graph.output] == given + [(s.output, s.dtype, s.shape) for s in states]


def described(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    assert {axis for axis in shape if isinstance(axis, str)} <= AXES
    return value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape


def test_graphs_pass_the_onnx_checker(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        onnx.checker.check_model(path)


def test_weights_lie_outside_the_graph_on_pages(smolvlm_bundle: Path) -> None:
    for component in open_bundle(smolvlm_bundle).manifest.components.values():
        graph = onnx.load(smolvlm_bundle / component.file, load_external_data=False).graph
        inline = [tensor for tensor in graph.initializer if not tensor.external_data]
        assert all(len(tensor.raw_data) <= 1024 for tensor in inline)
        assert component.weight_bytes == pytest.approx(
            (smolvlm_bundle / f"{component.file}.data").stat().st_size, rel=0.1
        )


def test_weights_keep_their_checkpoint_names(smolvlm_bundle: Path) -> None:
    graph = onnx.load(smolvlm_bundle / "decoder.onnx", load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    assert "model.text_model.layers.2.self_attn.q_proj.weight" in names
    assert "lm_head.weight" in names


def test_goldens_are_reproduced_by_the_graphs(bundle: Path, open_graphs: Any) -> None:
    graphs = open_graphs(bundle)
    recordings = load_golden(bundle / GOLDEN)
    assert set(recordings) == set(graphs.manifest.components)
    for component, recording in recordings.items():
        part = graphs.manifest.components[component]
        names = [spec.name for spec in part.outputs]
        names += [state.output for state in graphs.manifest.states if component == "decoder"]
        found = dict(zip(names, graphs.run(component, **recording.inputs), strict=True))
        if optional := [spec.name for spec in part.optional_outputs]:
            found |= dict(zip(optional, graphs.run_optional(component, **recording.inputs), strict=True))
        # the recording session skips weight prepacking, so sums may run in another order
        check(component, recording.outputs, found, max_relative=1e-5)


def test_goldens_differ_when_a_weight_differs(smolvlm_bundle: Path, tmp_path: Path, open_graphs: Any) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(smolvlm_bundle, altered)
    data = np.fromfile(altered / "decoder.onnx.data", np.float32)
    data[::1000] += 1
    data.tofile(altered / "decoder.onnx.data")
    recording = load_golden(altered / GOLDEN)["decoder"]
    logits = open_graphs(altered).run("decoder", **recording.inputs)[0]
    assert np.abs(logits - recording.outputs["logits"]).max() > 1e-2


def test_manifest_names_the_source_without_its_path(smolvlm_bundle: Path) -> None:
    manifest = open_bundle(smolvlm_bundle).manifest
    assert (manifest.name, manifest.source, manifest.model_type) == ("tiny-smolvlm", "tiny-smolvlm", "smolvlm")


def test_source_digest_follows_the_weights_alone(clip_checkpoint: Path, clip_bundle: Path, tmp_path: Path) -> None:
    export_checkpoint(clip_checkpoint, tmp_path / "again", name="other")
    again = open_bundle(tmp_path / "again").manifest
    assert again.name == "other"
    assert again.source_sha256 == open_bundle(clip_bundle).manifest.source_sha256
    changed = shutil.copytree(clip_checkpoint, tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    assert export_checkpoint(changed, tmp_path / "third").source_sha256 != again.source_sha256


def test_dual_encoder_states_its_scoring(clip_bundle: Path) -> None:
    dual = open_bundle(clip_bundle).manifest.dual
    assert dual is not None
    assert dual.scoring == "softmax"
    assert dual.logit_scale == pytest.approx(np.exp(2.6592), rel=0.5)
    assert (dual.embedding_size, dual.max_text_tokens, dual.pads_to_max) == (24, 32, False)


def test_longest_text_is_the_length_of_the_position_table_whatever_spells_it(
    clip_checkpoint: Path, clip_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "older")
    config = json.loads((folder / "config.json").read_text())
    config |= {"text_config_dict": config["text_config"], "text_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    dual = export_checkpoint(folder, tmp_path / "bundle").dual
    assert dual == read_manifest(clip_bundle).dual


def test_progress_tells_every_graph(clip_checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export_checkpoint(clip_checkpoint, tmp_path / "bundle", progress=lines.append)
    assert any("vision_encoder.onnx" in line for line in lines)
    assert any("text_encoder.onnx" in line for line in lines)


def test_sampling_setting_that_is_not_applied_is_told(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_config(smolvlm_checkpoint, tmp_path / "penalised")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "no_repeat_ngram_size": 3, "num_beams": 1}))
    said: list[str] = []
    export_checkpoint(folder, tmp_path / "bundle", progress=said.append)
    assert [line for line in said if "generation_config" in line] == [
        "generation_config.json: no_repeat_ngram_size 3 is left out; answers are sampled without it"
    ]


def test_penalties_of_a_checkpoint_are_the_bundles_own(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_config(smolvlm_checkpoint, tmp_path / "penalised")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.1, "min_p": 0.05}))
    export_checkpoint(folder, tmp_path / "bundle")
    defaults = SamplingDefaults.read(tmp_path / "bundle" / GENERATION)
    assert (defaults.repetition_penalty, defaults.min_p) == (1.1, 0.05)


def test_existing_bundle_is_replaced_only_when_asked(clip_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(clip_checkpoint, tmp_path / "bundle")
    with pytest.raises(BundleError, match="--overwrite"):
        export_checkpoint(clip_checkpoint, tmp_path / "bundle")
    export_checkpoint(clip_checkpoint, tmp_path / "bundle", overwrite=True)


def test_unknown_architecture_lists_the_known_ones(clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_config(clip_checkpoint, tmp_path / "unknown", model_type="mamba3")
    with pytest.raises(UnknownArchitectureError, match=f"'mamba3'.*known: {', '.join(sorted(ARCHITECTURES))}"):
        export_checkpoint(folder, tmp_path / "bundle")


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "48"), ("num_hidden_layers", 0), ("hidden_size", 32.0)])
def test_a_size_that_is_no_count_is_named(key: str, value: Any, clip_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((clip_checkpoint / "config.json").read_text())
    config["text_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedConfigError, match=rf"text_config\.{key} is {value!r}; a whole number above 0"):
        export_checkpoint(tmp_path, tmp_path / "bundle")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_unusable_config_is_named(content: str | None, clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "broken")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        export_checkpoint(folder, tmp_path / "bundle")


UNSUPPORTED = [
    ({"text_config": {"model_type": "bloom"}}, "bloom"),
    ({"text_config": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}}, "longrope"),
    ({"text_config": {"model_type": "qwen2", "use_sliding_window": True}}, "use_sliding_window"),
    ({"text_config": {"hidden_act": "xielu"}}, "xielu"),
    ({"text_config": {"num_key_value_heads": 4}}, "num_key_value_heads 4"),
    ({"text_config": {"head_dim": 20}}, "head size 20"),
    ({"text_config": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"vision_config": {"image_size": [32, 64]}}, "image_size"),
    ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads 5"),
    ({"vision_config": {"num_channels": 1}}, "num_channels"),
    ({"scale_factor": 3}, "scale_factor 3"),
    ({"text_config": None}, "text_config"),
]


@pytest.mark.parametrize(("changes", "named"), UNSUPPORTED, ids=[named for _, named in UNSUPPORTED])
def test_unsupported_setting_is_named(
    changes: dict[str, Any], named: str, smolvlm_checkpoint: Path, tmp_path: Path
) -> None:
    folder = with_config(smolvlm_checkpoint, tmp_path / "odd", **changes)
    with pytest.raises(UnsupportedConfigError, match=re.escape(named)):
        export_checkpoint(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_processor_of_another_resolution_is_refused(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_config(smolvlm_checkpoint, tmp_path / "larger")
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"]["max_image_size"] = {"longest_edge": 64}
    processor.pop("image_seq_len")
    path.write_text(json.dumps(processor))
    with pytest.raises(UnsupportedConfigError, match=r"\(64, 64\).*takes 32"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_tokenizer_with_ids_beyond_the_embedding_table_is_refused(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smolvlm_checkpoint, tmp_path / "beyond")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab_size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "content": "<beyond>", "id": vocab_size})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedConfigError, match=rf"'<beyond>'.*id {vocab_size}.*{vocab_size} rows"):
        export_checkpoint(folder, tmp_path / "bundle")


@pytest.mark.parametrize("checkpoint", ["no/such-model-anywhere", "/no/such/folder", "a b"])
def test_absent_checkpoint_says_what_to_do(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="folder"):
        export_checkpoint(checkpoint, tmp_path / "bundle")


def test_export_needs_neither_torch_nor_transformers(clip_checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\n"
        "from export.exporter import export_checkpoint\n"
        f"export_checkpoint({str(clip_checkpoint)!r}, Path({str(tmp_path / 'bundle')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    open_bundle(tmp_path / "bundle")


@pytest.mark.slow
def test_smolvlm_256m_exports_quickly_in_little_memory(checkpoints: ModuleType, tmp_path: Path) -> None:
    """Under 30 s of processor time (wall time would measure the neighbours) and under twice the weights in memory.

    The process says both of itself: what the system tells of children is the most of any, and begins at our own size.
    """
    num_weights = checkpoints.save_preset(tmp_path / "checkpoint", "smolvlm-256m")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bundle.machine import peak_memory_bytes\n"
        "from export.exporter import export_checkpoint\n"
        "export_checkpoint(sys.argv[1], Path(sys.argv[2]))\n"
        "print(time.process_time(), peak_memory_bytes())\n"
    )
    arguments = [str(tmp_path / "checkpoint"), str(tmp_path / "bundle")]
    command = [sys.executable, "-c", script, *arguments]
    said = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    taken_s, peak_bytes = map(float, said.split())
    weight_bytes = open_bundle(tmp_path / "bundle", verify=False).manifest.weight_bytes
    print(f"{taken_s:.1f} s, peak {peak_bytes / 1e6:.0f} MB, weights {weight_bytes / 1e6:.0f} MB")
    assert weight_bytes == pytest.approx(4 * num_weights, rel=0.01)
    assert taken_s < 30
    assert peak_bytes < 2 * weight_bytes
