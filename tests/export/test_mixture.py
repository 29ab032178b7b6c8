"""Mixtures of experts against the reference module: both dialects, packed ternary and float experts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bundle.errors import CheckpointError, MissingWeightError, UnsupportedConfigError
from bundle.form import Form
from commands.shipped import CHECKPOINTS
from export.exporter import export_checkpoint
from graphs.experts import find_experts
from graphs.store import open_graph, save_graph
from quant.weights.qmoe import QuantizedExperts

# float32 sums in another order, on logits up to 12; a wrong gate or expert makes 1e-1 and more
LOGIT_TOLERANCE = 1e-3
SHAPES = {"ternary": (4, 704, "ternary"), "float": (4, 88, "float")}
IDS = np.array([[1, 20, 30, 40, 50, 60, 70, 21], [9, 8, 7, 6, 5, 4, 3, 2]])


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch, load_file, save_file, mote, ternary
    import torch
    from safetensors.torch import load_file, save_file

    from reference import mote, ternary


@dataclass(frozen=True)
class Pair:
    """A reference model and its bundle's graphs."""

    model: Any
    graphs: Any


@pytest.fixture(scope="module", params=SHAPES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained mixture whose experts differ and whose routers send tokens to all of them."""
    folder = tmp_path_factory.mktemp("mixture")
    mote.write_upcycled(CHECKPOINTS["vlm"], folder, mote.ExpertShape(*SHAPES[request.param]))
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    mote.write_upcycled(CHECKPOINTS["vlm"], folder, mote.ExpertShape(*SHAPES["ternary"]))
    return folder


@pytest.fixture(scope="module", params=["contrib", "portable"])
def pair(
    request: pytest.FixtureRequest, mixture: Path, open_graphs: Any, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    bundle = tmp_path_factory.mktemp("bundle") / "bundle"
    export_checkpoint(mixture, bundle, dialect=request.param)
    return Pair(mote.load_mote(mixture), open_graphs(bundle))


def logits_of(graphs: Any, ids: np.ndarray) -> np.ndarray:
    return graphs.decoder(len(ids), ids.shape[1]).step(graphs.embed(ids))


def test_logits_are_those_of_the_reference(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its rounding of the experts' inputs to int8 switched off, which the float32 graph does not have."""
    monkeypatch.setattr(ternary, "int8_per_token", lambda values: values)
    with torch.inference_mode():
        expected = pair.model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    assert_allclose(logits_of(pair.graphs, IDS), expected, atol=LOGIT_TOLERANCE, rtol=0)


def test_rounding_of_activations_is_all_that_differs(pair: Pair) -> None:
    """What the reference loses by int8 inputs of its experts: about 1 % of the logits' norm."""
    with torch.inference_mode():
        expected = pair.model(input_ids=torch.from_numpy(IDS)).logits.numpy()
    assert np.linalg.norm(logits_of(pair.graphs, IDS) - expected) < 4e-2 * np.linalg.norm(expected)


def test_every_expert_is_chosen_by_some_token(pair: Pair) -> None:
    """Else the tests above would say little."""
    chosen = set()
    for layer in pair.model.model.text_model.layers:
        layer.mlp.router.register_forward_hook(lambda _m, _i, out: chosen.update(out.argmax(-1).flatten().tolist()))
    with torch.inference_mode():
        pair.model(input_ids=torch.from_numpy(IDS))
    assert chosen == {0, 1, 2, 3}


def test_decoding_one_by_one_equals_prefill(pair: Pair) -> None:
    whole = logits_of(pair.graphs, IDS)
    decoder = pair.graphs.decoder(len(IDS), IDS.shape[1])
    steps = [decoder.step(pair.graphs.embed(IDS[:, at : at + 1])) for at in range(IDS.shape[1])]
    assert_allclose(np.concatenate(steps, axis=1), whole, atol=LOGIT_TOLERANCE, rtol=0)


def test_a_sequence_does_not_feel_its_batch_mate(pair: Pair) -> None:
    alone = logits_of(pair.graphs, IDS[:1])
    assert_allclose(logits_of(pair.graphs, IDS)[:1], alone, atol=LOGIT_TOLERANCE, rtol=0)


def test_contrib_runs_the_chosen_expert_alone_and_portable_uses_standard_operators(
    packed: Path, tmp_path: Path
) -> None:
    for dialect, is_fused in (("contrib", True), ("portable", False)):
        export_checkpoint(packed, tmp_path / dialect, dialect=dialect)
        graph = onnx.load(tmp_path / dialect / "decoder.onnx", load_external_data=False).graph
        assert ("MoE" in {node.op_type for node in graph.node}) == is_fused
        assert ("com.microsoft" in {node.domain for node in graph.node}) == is_fused


def test_ternary_experts_hold_three_values_a_matrix(packed: Path, tmp_path: Path) -> None:
    export_checkpoint(packed, tmp_path / "bundle")
    initializers = open_graph(tmp_path / "bundle" / "decoder.onnx").graph.initializers
    stored = load_file(packed / "model.safetensors")
    prefix = "model.text_model.layers.1.mlp.experts"
    stacked = initializers[f"{prefix}.gate_up_proj"].const_value.numpy()
    for expert in range(4):
        for place, part in enumerate(("gate_proj", "up_proj")):
            name = f"{prefix}.{expert}.{part}.weight"
            codes = ternary.unpack(stored[name]).float() * stored[f"{name}_scale"].float()
            assert_array_equal(stacked[expert, place::2], codes.numpy())


def test_two_bit_experts_answer_as_the_reference_does(packed: Path, tmp_path: Path, open_graphs: Any) -> None:
    """From packed checkpoint to QMoE: codes and scales as stored, and the reference's own int8 inputs of experts."""
    export_checkpoint(packed, tmp_path / "bundle")
    model = open_graph(tmp_path / "bundle" / "decoder.onnx")
    names = [experts.name for experts in find_experts(model.graph)]
    assert names == [f"model.text_model.layers.{layer}.mlp.experts" for layer in range(4)]
    QuantizedExperts(dict.fromkeys(names, Form(2, 64, "ternary")))(model)
    smaller = shutil.copytree(tmp_path / "bundle", tmp_path / "smaller")
    save_graph(model, smaller / "decoder.onnx")
    stored = load_file(packed / "model.safetensors")
    scales = model.graph.initializers[f"{names[2]}.down_proj.scale"].const_value.numpy()
    for expert in range(4):
        assert set(np.unique(scales[expert])) <= {0, float(stored[f"{names[2]}.{expert}.down_proj.weight_scale"])}
    with torch.inference_mode():
        expected = mote.load_mote(packed)(input_ids=torch.from_numpy(IDS)).logits.numpy()
    # both round the inputs of experts to int8, one per token and one per block
    assert np.linalg.norm(logits_of(open_graphs(smaller), IDS) - expected) < 4e-2 * np.linalg.norm(expected)


def with_text_config(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {k: v for k, v in (config["text_config"] | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 2}, "num_experts_per_tok is 2; only 1 is built"),
        ({"expert_weights": "int3"}, "expert_weights 'int3'; known: ternary, float"),
        ({"num_experts": None}, "text_config lacks num_experts"),
        ({"mlp_bias": True}, "mlp_bias is True; only False is built"),
    ],
)
def test_experts_that_are_not_built_are_refused(
    changes: dict[str, Any], message: str, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedConfigError, match=message):
        export_checkpoint(with_text_config(packed, tmp_path / "changed", **changes), tmp_path / "bundle")


def test_quantization_config_beside_ternary_experts_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "both")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitnet"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedConfigError, match="quantization_config"):
        export_checkpoint(folder, tmp_path / "bundle")


@pytest.fixture
def edited(packed: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = shutil.copytree(packed, tmp_path / "edited")
        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors")
        return folder

    return edit


EXPERT = "model.text_model.layers.2.mlp.experts.3.up_proj.weight"


def test_missing_expert_is_named(edited: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeightError, match=EXPERT):
        export_checkpoint(edited(lambda stored: stored.pop(f"{EXPERT}_scale") and stored.pop(EXPERT)), tmp_path / "b")


def test_expert_without_scale_is_refused(edited: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{EXPERT}.* have no weight_scale"):
        export_checkpoint(edited(lambda stored: stored.pop(f"{EXPERT}_scale")), tmp_path / "b")


def test_expert_in_full_precision_among_ternary_ones_is_refused(edited: Callable[..., Path], tmp_path: Path) -> None:
    def restore(stored: dict[str, torch.Tensor]) -> None:
        stored[EXPERT] = ternary.unpack(stored[EXPERT]).half()
        del stored[f"{EXPERT}_scale"]

    with pytest.raises(CheckpointError, match=f"{EXPERT} is stored as F16 without a weight_scale"):
        export_checkpoint(edited(restore), tmp_path / "b")


def test_expert_of_another_width_is_refused(edited: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{EXPERT} is \[352, 256\] in the checkpoint"):
        export_checkpoint(edited(lambda stored: stored.update({EXPERT: stored[EXPERT][:88].clone()})), tmp_path / "b")
