"""Experts in one tensor, and projections in one matrix: each part is read by itself, and what does not fit is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, read_header
from export.decoders.llama import Llama
from export.quantized.packed_projections import PackedProjections, by_shared_heads
from export.quantized.stacked_experts import StackedExperts

HEADS = Llama.read({"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}).config


def stored(folder: Path, **tensors: np.ndarray) -> dict[str, StoredTensor]:
    save_file(tensors, folder / "model.safetensors")
    return read_header(folder / "model.safetensors")


def test_each_expert_has_matrices_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    first = rng.standard_normal((3, 4, 10)).astype(ml_dtypes.bfloat16)
    second = rng.standard_normal((3, 5, 4)).astype(np.float32)
    named = {"l.experts.gate_up_proj": first, "l.experts.down_proj": second, "l.router.weight": second[0]}
    found = StackedExperts({}).restored(stored(tmp_path, **named), set())
    assert set(found) == {"l.router.weight"} | {
        f"l.experts.{expert}.{part}_proj.weight" for expert in range(3) for part in ("gate", "up", "down")
    }
    expected = {"gate": first[2, :, :5].T, "up": first[2, :, 5:].T, "down": second[2].T}
    for part, matrix in expected.items():
        weight = found[f"l.experts.2.{part}_proj.weight"]
        assert weight.shape == matrix.shape
        assert_array_equal(weight.read(), matrix.astype(np.float32))


def test_experts_in_bytes_are_refused_when_they_are_read(tmp_path: Path) -> None:
    found = StackedExperts({}).restored(
        stored(tmp_path, **{"l.experts.down_proj": np.zeros((2, 3, 4), np.uint8)}), set()
    )
    with pytest.raises(UnsupportedConfigError, match="stores a weight as U8"):
        found["l.experts.0.down_proj.weight"].read()


@pytest.mark.parametrize("kind", ["", "_ve"])
def test_heads_that_share_a_key_stand_before_it(tmp_path: Path, kind: str) -> None:
    numbers = np.arange(2 * 5 * 4, dtype=np.float32)
    packed = {f"a.wqkv{kind}.weight": np.tile(numbers[:, None], (1, 24)), f"a.wqkv{kind}.bias": numbers}
    found = PackedProjections({f"wqkv{kind}": by_shared_heads(HEADS, kind) for kind in ("", "_ve")}).restored(
        stored(tmp_path, **packed), set()
    )
    groups = numbers.reshape(2, 5, 4)
    expected = {"q": groups[:, :3], "k": groups[:, 3], "v": groups[:, 4]}
    for part, rows in expected.items():
        assert_array_equal(found[f"a.{part}_proj{kind}.bias"].read(), rows.reshape(-1))
        weight = found[f"a.{part}_proj{kind}.weight"]
        assert weight.shape == (rows.size, 24)
        assert_array_equal(weight.read()[:, 7], rows.reshape(-1))


def test_heads_of_another_number_are_named(tmp_path: Path) -> None:
    tensors = stored(tmp_path, **{"a.wqkv.weight": np.zeros((40, 24), np.float32)})
    with pytest.raises(CheckpointError, match=r"a\.wqkv\.weight has 40 rows; q_proj, k_proj, v_proj in it want 72"):
        PackedProjections({"wqkv": by_shared_heads(replace(HEADS, num_kv_heads=6))}).restored(tensors, set())
