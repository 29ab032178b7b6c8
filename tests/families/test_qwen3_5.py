"""Qwen3.5: what of its configs is built, what is left out, and the delta rule against what it is by definition."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnxscript import GraphBuilder
from safetensors.numpy import load_file, save_file

from bundle.errors import CheckpointError, UnknownArchitectureError, UnsupportedConfigError
from bundle.prompt import Turn
from export.architectures import load_family
from export.exporter import export_checkpoint
from export.nn.dialects import DIALECTS
from export.nn.recurrence import DeltaHeads, DeltaTokens
from quant.quantizer import quantize_bundle
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings


def config_of(families: dict[str, ModuleType], part: str | None = None, **settings: Any) -> dict[str, Any]:
    config = copy.deepcopy(families["qwen3_5"].config())
    (config if part is None else config[part]).update(settings)
    found: dict[str, Any] = config
    return found


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"attn_output_gate": False}, "attn_output_gate False"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"layer_types": ["linear_attention"] * 4}, r"layer_types.*full_attention of one at least"),
        ({"layer_types": ["mamba", "full_attention", "mamba", "mamba"]}, "'mamba'"),
        ({"layer_types": ["full_attention"]}, "each of the 4 layers"),
        ({"linear_num_value_heads": 5}, "linear_num_value_heads 5 is not a multiple"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim 1"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [11, 11, 10]}}, "3 in all"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "of type"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(
    families: dict[str, ModuleType], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        _ = load_family(config_of(families, "text_config", **settings)).vocab_size


def test_yarn_scales_what_turns_of_a_head_and_nothing_else(
    sample_of: Any, families: dict[str, ModuleType], tmp_path: Path
) -> None:
    """As Qwen stretches contexts; the rest of a head passes as it is."""
    config = config_of(families)
    longer = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    config["text_config"]["rope_parameters"].update(longer)
    families["qwen3_5"].save(tmp_path / "checkpoint", config)
    sample = replace(sample_of("qwen3_5", 0), checkpoint=tmp_path / "checkpoint", made=tmp_path)
    parts = ["Where does a context end that was made longer? " * 3]
    runner = VisionLanguageRunner(sample.bundle(), RuntimeSettings(intra_threads=1))
    prefilled = runner.prefill(runner.prompt([Turn("user", tuple(parts))], []), 4)
    expected = sample.logits(sample.inputs(parts), [1, 2, 3])
    assert_allclose(runner.forced_logits(prefilled, [1, 2, 3, 4]), expected, atol=1e-3)


@pytest.mark.parametrize(("interval", "rows"), [(None, (3,)), (2, (1, 3))])
def test_layers_with_attention_are_every_so_many_where_no_list_says(
    families: dict[str, ModuleType], interval: int | None, rows: tuple[int, ...]
) -> None:
    stated = {} if interval is None else {"full_attention_interval": interval}
    family: Any = load_family(config_of(families, "text_config", layer_types=None, **stated))
    assert family.decoder.layers_with_rows == rows


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_5_moe"])
def test_checkpoints_of_texts_alone_and_with_experts_are_unknown_by_name(kind: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=f"{kind}.*qwen3_5"):
        load_family({"model_type": kind})


def test_what_predicts_several_tokens_is_left_out(sample_of: Any, tmp_path: Path) -> None:
    source, folder = sample_of("qwen3_5", 0).checkpoint, tmp_path / "checkpoint"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    more = {"mtp.fc.weight": np.zeros((48, 96), np.float32), "mtp.layers.0.mlp.up_proj.weight": np.zeros((80, 48))}
    save_file({**weights, **more}, folder / "model.safetensors")
    manifest = export_checkpoint(folder, tmp_path / "bundle", name="tiny")
    assert [state.kind for state in manifest.states[:2]] == ["fixed", "fixed"]


def test_what_a_state_forgets_is_reckoned_by_whole_numbers(sample_of: Any, tmp_path: Path) -> None:
    quantize_bundle(sample_of("qwen3_5", 0).bundle().directory, tmp_path / "int4", weights="int4")
    model = ir.load(tmp_path / "int4" / "decoder.onnx")
    stored = {name: value.dtype for name, value in model.graph.initializers.items() if ".in_proj_" in name}
    whole = {name for name, dtype in stored.items() if dtype == ir.DataType.FLOAT and name.endswith(".weight")}
    numbers = [number for number in range(4) if number != 2]
    prefix = "model.language_model.layers"
    assert whole == {f"{prefix}.{number}.linear_attn.in_proj_{part}.weight" for number in numbers for part in "ab"}


def test_a_llama_cpp_file_is_refused_by_the_layers_that_it_would_have_to_hold(sample_of: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "decoder.gguf", "qwen35")
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((CheckpointError, UnsupportedConfigError), match="qwen35"):
        export_checkpoint(
            sample_of("qwen3_5", 0).checkpoint, tmp_path / "bundle", decoder_gguf=tmp_path / "decoder.gguf"
        )


HEADS = DeltaHeads(num_keys=2, num_values=4, key_size=8, value_size=12)


def session_of(dialect: str) -> onnxruntime.InferenceSession:
    """Return a graph of a delta rule alone."""
    chosen = DIALECTS[dialect]()
    builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports=dict(chosen.opset_imports), name="rule"))
    widths = {"query": 16, "key": 16, "value": 48, "decay": 4, "update": 4}
    taken = {name: builder.input(name, ir.DataType.FLOAT, ["B", "T", width]) for name, width in widths.items()}
    state = builder.input("state", ir.DataType.FLOAT, ["B", 4, 8, 12])
    for value, name in zip(
        chosen.recurrence.delta_rule(builder.op, DeltaTokens(**taken), state, HEADS), ("made", "after"), strict=True
    ):
        value.type = ir.TensorType(ir.DataType.FLOAT)
        builder.add_output(value, name)
    model = ir.to_proto(ir.Model(builder.graph, ir_version=11))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_definition(tokens: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return what heads give and the state behind, token by token in float64 (arXiv 2412.06464, equation 10)."""
    wide = {name: array.astype(np.float64) for name, array in tokens.items()}
    size, num = wide["query"].shape[:2]
    query, key = (np.repeat(wide[name].reshape(size, num, 2, 8), 2, axis=2) for name in ("query", "key"))
    value, state, made = wide["value"].reshape(size, num, 4, 12), wide["state"], []
    for at in range(num):
        state = state * np.exp(wide["decay"][:, at, :, None, None])
        known = np.einsum("bhkv,bhk->bhv", state, key[:, at])
        written = wide["update"][:, at, :, None] * (value[:, at] - known)
        state = state + key[:, at, :, :, None] * written[:, :, None]
        made.append(np.einsum("bhkv,bhk->bhv", state, query[:, at]) / 8**0.5)
    return np.stack(made, axis=1).reshape(size, num, -1), state


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize("kind", ["drawn", "alike", "forgotten"])
def test_a_delta_rule_is_its_definition_however_long_a_run_is(dialect: str, kind: str) -> None:
    """Keys that are alike are where a sum of powers would lose all digits; tokens that forget all, where exp is 0."""
    session, rng = session_of(dialect), np.random.default_rng(5)
    for num in (1, 2, 31, 32, 33, 150):
        tokens = {name: rng.normal(size=(2, num, width)).astype(np.float32) for name, width in
                  {"query": 16, "key": 16, "value": 48, "decay": 4, "update": 4}.items()}  # fmt: skip
        tokens["state"] = rng.normal(size=(2, 4, 8, 12)).astype(np.float32)
        if kind == "alike":
            tokens["key"][:] = tokens["key"][:, :1] + 1e-3 * tokens["key"]
        for name in ("query", "key"):
            heads = tokens[name].reshape(2, num, 2, 8)
            tokens[name] = (heads / np.linalg.norm(heads, axis=-1, keepdims=True)).reshape(2, num, 16)
        tokens["decay"] = -np.abs(tokens["decay"]) * (200 if kind == "forgotten" else 0.02)
        tokens["update"] = 1 / (1 + np.exp(-tokens["update"]))
        expected = by_definition(tokens)
        for found, wanted in zip(session.run(["made", "after"], tokens), expected, strict=True):
            assert_allclose(found, wanted, atol=2e-5)
