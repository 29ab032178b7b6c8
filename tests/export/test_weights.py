"""Finding every weight: key layouts, files and number formats, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from bundle.errors import CheckpointError, MissingWeightError, SurplusWeightError
from export import checkpoint
from export.exporter import export_checkpoint

Weights = dict[str, np.ndarray]
Edit = Callable[[Weights], Weights]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path, Edit], Path]:
    """Copy a checkpoint with its weights changed."""

    def copy(checkpoint: Path, edit: Edit) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(checkpoint, folder)
        save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors")
        return folder

    return copy


@pytest.fixture(scope="module")
def llava_checkpoint(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("llava-clip-llama")


def renamed(*rules: tuple[str, str]) -> Edit:
    def edit(weights: Weights) -> Weights:
        return {_apply(rules, key): value for key, value in weights.items()}

    return edit


def _apply(rules: tuple[tuple[str, str], ...], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def graph_bytes(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.glob("*.onnx*")}


NEW_LAYOUT = (
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model", "model.language_model"),
    (r"^(vision_tower|multi_modal_projector)", r"model.\1"),
)
OLD_LAYOUT = ((r"^vision_tower\.", "vision_tower.vision_model."),)


@pytest.mark.parametrize("rules", [NEW_LAYOUT, OLD_LAYOUT], ids=["transformers-5-names", "hub-names"])
def test_both_key_layouts_give_the_same_graphs(
    rules: tuple[tuple[str, str], ...],
    llava_checkpoint: Path,
    bundle_of: Callable[..., Path],
    edited: Callable[[Path, Edit], Path],
    tmp_path: Path,
) -> None:
    changed = edited(llava_checkpoint, renamed(*rules))
    assert set(load_file(changed / "model.safetensors")) != set(load_file(llava_checkpoint / "model.safetensors"))
    export_checkpoint(changed, tmp_path / "bundle")
    assert graph_bytes(tmp_path / "bundle") == graph_bytes(bundle_of("llava-clip-llama"))


def test_sharded_checkpoint_gives_the_same_graphs(
    smolvlm_checkpoint: Path, smolvlm_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(smolvlm_checkpoint, folder)
    weights = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    half = len(weights) // 2
    index = {}
    for name, part in (("a.safetensors", weights[:half]), ("b.safetensors", weights[half:])):
        save_file(dict(part), folder / name)
        index |= {key: name for key, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    export_checkpoint(folder, tmp_path / "bundle")
    assert graph_bytes(tmp_path / "bundle") == graph_bytes(smolvlm_bundle)


def test_whole_file_counts_where_shards_of_another_time_lie_beside_it(
    clip_checkpoint: Path, clip_bundle: Path, load_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "resaved")
    stale = {key: np.asarray(weight + 1) for key, weight in load_file(folder / "model.safetensors").items()}
    save_file(stale, folder / "stale.safetensors")
    index = {"weight_map": dict.fromkeys(stale, "stale.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = load_reference(folder).logit_scale.detach().exp()
    manifest = export_checkpoint(folder, tmp_path / "bundle")
    assert manifest.dual is not None
    assert manifest.dual.logit_scale == pytest.approx(float(expected))
    assert graph_bytes(tmp_path / "bundle") == graph_bytes(clip_bundle)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_weights_are_converted_exactly(
    dtype: type, clip_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    """Every 16-bit value is a float32 value, so the graphs equal those of the rounded weights in float32."""
    halves = {k: w.astype(dtype) for k, w in load_file(clip_checkpoint / "model.safetensors").items()}
    halved = edited(clip_checkpoint, lambda _: halves)
    export_checkpoint(halved, tmp_path / "half")
    save_file({k: w.astype(np.float32) for k, w in halves.items()}, halved / "model.safetensors")
    export_checkpoint(halved, tmp_path / "full")
    assert graph_bytes(tmp_path / "half") == graph_bytes(tmp_path / "full")


def test_large_tables_are_converted_piece_by_piece_to_the_same_bytes(
    smolvlm_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = edited(smolvlm_checkpoint, lambda w: {key: value.astype(ml_dtypes.bfloat16) for key, value in w.items()})
    export_checkpoint(half, tmp_path / "whole", name="tiny")
    monkeypatch.setattr(checkpoint, "_PIECE_NUMBERS", 100)  # divides no row of the table
    export_checkpoint(half, tmp_path / "pieces", name="tiny")
    assert graph_bytes(tmp_path / "whole") == graph_bytes(tmp_path / "pieces")


def test_missing_weight_is_named(
    smolvlm_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    key = "model.text_model.layers.1.mlp.up_proj.weight"
    changed = edited(smolvlm_checkpoint, lambda weights: {k: w for k, w in weights.items() if k != key})
    with pytest.raises(MissingWeightError, match=re.escape(key)):
        export_checkpoint(changed, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_surplus_weight_is_named(
    smolvlm_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    key = "model.text_model.layers.3.mlp.up_proj.weight"
    changed = edited(smolvlm_checkpoint, lambda weights: {**weights, key: np.zeros((2, 2))})
    with pytest.raises(SurplusWeightError, match=re.escape(key)):
        export_checkpoint(changed, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_many_missing_weights_are_counted(
    smolvlm_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    changed = edited(smolvlm_checkpoint, lambda weights: {k: w for k, w in weights.items() if "mlp" not in k})
    with pytest.raises(MissingWeightError, match=r"lacks 17 weights .* and 12 more"):
        export_checkpoint(changed, tmp_path / "bundle")


def test_buffers_without_weights_are_no_surplus(
    clip_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    buffers = {
        "text_model.embeddings.position_ids": np.arange(32)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    changed = edited(clip_checkpoint, lambda weights: {**weights, **buffers})
    export_checkpoint(changed, tmp_path / "bundle")


def test_weight_of_another_shape_is_refused_with_both_shapes(
    clip_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    key = "visual_projection.weight"
    changed = edited(clip_checkpoint, lambda weights: {**weights, key: weights[key][:20].copy()})
    with pytest.raises(CheckpointError, match=r"visual_projection.weight is \[20, 48\].*\[48,24\] transposed"):
        export_checkpoint(changed, tmp_path / "bundle")


def test_two_keys_of_one_weight_are_refused(
    llava_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    changed = edited(llava_checkpoint, lambda weights: {**weights, "lm_head.weight": np.zeros((2, 2))})
    with pytest.raises(CheckpointError, match=r"two keys mean 'lm_head.weight'"):
        export_checkpoint(changed, tmp_path / "bundle")


def test_a_tied_matrix_may_be_stored_under_either_of_its_names(
    smolvlm_checkpoint: Path, smolvlm_bundle: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    changed = edited(smolvlm_checkpoint, renamed((r"^model\.text_model\.embed_tokens", "lm_head")))
    assert "model.text_model.embed_tokens.weight" not in load_file(changed / "model.safetensors")
    export_checkpoint(changed, tmp_path / "bundle")
    assert graph_bytes(tmp_path / "bundle") == graph_bytes(smolvlm_bundle)


def test_untied_config_without_an_output_matrix_is_refused(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(smolvlm_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeightError, match=r"lm_head\.weight"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_quantized_weights_are_refused_by_format(
    clip_checkpoint: Path, edited: Callable[[Path, Edit], Path], tmp_path: Path
) -> None:
    key = "visual_projection.weight"
    changed = edited(clip_checkpoint, lambda weights: {**weights, key: weights[key].astype(ml_dtypes.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        export_checkpoint(changed, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("size", [0, 5, 200, -1000])
def test_truncated_weight_file_is_refused(size: int, clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(clip_checkpoint, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="not a safetensors file, or was cut short"):
        export_checkpoint(folder, tmp_path / "bundle")


@pytest.mark.parametrize("shift", [-4, 4])
def test_header_whose_offsets_and_shape_disagree_is_refused(shift: int, clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "broken")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["logit_scale"]["data_offsets"][0] += shift
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"logit_scale.*bytes"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_missing_shard_is_named(smolvlm_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(smolvlm_checkpoint, folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_a_folder_without_weights_is_told_what_is_read(clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(CheckpointError, match=r"Export reads safetensors and what torch\.save wrote"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_matrices_are_stored_as_in_by_out(clip_checkpoint: Path, clip_bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(clip_bundle / "vision_encoder.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = load_file(clip_checkpoint / "model.safetensors")["visual_projection.weight"].T
    assert_array_equal(stored["visual_projection.weight"], expected)
