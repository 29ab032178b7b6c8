from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.form import Form
from quant.kv_cache.refusals import require_own_rows
from quant.planning.cliffs import refuse_cliffs, refuse_graphs, refuse_target
from quant.planning.plan import Choice, ComponentPlan, LayerPlan


def plan_of(choice: Choice) -> ComponentPlan:
    return ComponentPlan("decoder", "int4", "int4", (LayerPlan("up", choice, 64, 64, ""),))


@pytest.mark.parametrize(
    ("choice", "dialect", "target", "words"),
    [
        (Choice("matmul_nbits", Form(2, 16, "ternary")), "contrib", "cpu", "2-bit weights in blocks of 16"),
        (Choice("matmul_nbits", Form(2, 256, "ternary")), "contrib", "cpu", "2-bit weights in blocks of 256"),
        (Choice("matmul_nbits", Form(4, 48)), "contrib", "cpu", "block size 48"),
        (Choice("float16", Form(16)), "contrib", "cpu", "a CPU computes float16"),
        (Choice("matmul_nbits", Form(4, 64)), "portable", "cpu", "the portable dialect lacks"),
        (Choice("bnb4", Form(4, 64, "nf4")), "portable", "tensorrt", "the portable dialect lacks"),
        (Choice("qmoe", Form(2, 64, "ternary")), "portable", "cpu", "the portable dialect lacks"),
        (Choice("qdq_int4", Form(4, 64, "hqq")), "portable", "tensorrt", "zero points other than 0"),
        (Choice("w8a8", Form(8)), "contrib", "cuda", "no kernel on CUDA"),
        (Choice("w8a8_static", Form(8)), "contrib", "cuda", "no kernel on CUDA"),
        (Choice("qmoe", Form(4, 64)), "contrib", "cuda", "no kernel on CUDA"),
    ],
)
def test_a_known_cliff_is_an_error_that_names_the_layer(choice, dialect, target, words) -> None:
    with pytest.raises(QuantizationError, match=rf"decoder: up: .*{words}"):
        refuse_cliffs(plan_of(choice), dialect, target)


@pytest.mark.parametrize(
    ("choice", "dialect", "target"),
    [
        (Choice("matmul_nbits", Form(2, 128, "ternary")), "contrib", "cpu"),
        (Choice("float16", Form(16)), "contrib", "cuda"),
        (Choice("w8a8", Form(8)), "portable", "tensorrt"),
        (Choice("qdq_int4", Form(4, 64)), "portable", "tensorrt"),
        (Choice("fp32"), "portable", "cpu"),
    ],
)
def test_what_runs_well_is_let_through(choice, dialect, target) -> None:
    refuse_cliffs(plan_of(choice), dialect, target)


def test_a_variant_for_cuda_has_nothing_in_float32() -> None:
    plan = replace(plan_of(Choice("fp32")), recipe="fp32")
    with pytest.raises(QuantizationError, match="decoder: fp32 is not for --target cuda"):
        refuse_cliffs(plan, "contrib", "cuda")
    refuse_cliffs(plan, "contrib", "cpu")


def test_tensorrt_wants_the_portable_dialect(smolvlm_bundle: Path) -> None:
    manifest = read_manifest(smolvlm_bundle)
    with pytest.raises(QuantizationError, match="export the checkpoint with --dialect portable"):
        refuse_target(manifest, "tensorrt")
    refuse_target(manifest.model_copy(update={"dialect": "portable"}), "tensorrt")
    refuse_target(manifest, "cuda")


def test_only_graphs_of_cudas_form_want_its_kernels() -> None:
    node = ir.node("Celu", [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))])
    graph = ir.Graph(list(node.inputs), list(node.outputs), nodes=[node], name="text_encoder")
    refuse_graphs([graph], "contrib", "cpu")
    refuse_graphs([graph], "portable", "cuda")
    with pytest.raises(QuantizationError, match="text_encoder holds operators that have no CUDA kernel"):
        refuse_graphs([graph], "contrib", "cuda")


@pytest.mark.parametrize("past", ["past.0.key", "present.0.key"])
def test_layers_that_read_the_rows_of_others_are_told_before_work_is_done(past) -> None:
    states = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in ("past.0.key", "past.0.value")]
    first = ir.node("GroupQueryAttention", [None, None, None, *states], domain="com.microsoft", num_outputs=3)
    given = {"past.0.key": states, "present.0.key": first.outputs[1:]}[past]
    second = ir.node("GroupQueryAttention", [None, None, None, *given], domain="com.microsoft", num_outputs=3)
    graph = ir.Graph(states, list(second.outputs), nodes=[first, second], name="decoder")
    for check in (lambda: refuse_graphs([graph], "contrib", "cuda"), lambda: require_own_rows(graph, "int8")):
        if past == "past.0.key":
            check()
        else:
            with pytest.raises(
                QuantizationError, match=r"(--target cuda|--kv-cache int8): 1 layers of .* rows of others"
            ):
                check()
