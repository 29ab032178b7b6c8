"""A load on a device refuses what fell to the CPU, and says what it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from bundle.errors import MachineError
from runtime.placement import check_placement

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass(frozen=True)
class Node:
    op_type: str
    domain: str = ""
    name: str = ""


@dataclass(frozen=True)
class Part:
    ep_name: str
    nodes: Sequence[Node]

    def get_nodes(self) -> Sequence[Node]:
        return self.nodes


@dataclass(frozen=True)
class Opened:
    """A session as far as it is asked where its nodes went."""

    parts: Sequence[Part]
    providers: Sequence[str] = field(default=(CUDA, CPU))

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_graph_assignment_info(self) -> Sequence[Part]:
        return self.parts


def test_attention_that_fell_to_the_cpu_is_refused_by_name_number_and_reason() -> None:
    attention = [Node("GroupQueryAttention", "com.microsoft", f"layers.{layer}.attn") for layer in range(3)]
    opened = Opened([Part(CUDA, [Node("MatMul")]), Part(CPU, [*attention, Node("Softmax", name="s"), Node("Shape")])])
    with pytest.raises(MachineError) as told:
        check_placement("decoder.onnx", opened, "cuda")
    said = str(told.value)
    assert said.startswith("decoder.onnx: 4 nodes have no kernel on cuda")
    assert (
        "3 x GroupQueryAttention, the first of them layers.0.attn (on CUDA it takes float16 and bfloat16 only)" in said
    )
    assert "1 x Softmax, the first of them s" in said
    assert "Shape" not in said
    assert "\n" not in said


def test_arithmetic_on_shapes_may_stay_on_the_cpu() -> None:
    shapes = [Node(name) for name in ("Shape", "Gather", "Unsqueeze", "Concat", "Cast", "Add")]
    check_placement("g", Opened([Part(CUDA, [Node("MatMul")]), Part(CPU, shapes)]), "cuda")


def test_an_operator_of_another_domain_is_no_shape_arithmetic_whatever_its_name() -> None:
    with pytest.raises(MachineError, match="1 x Gather"):
        check_placement("g", Opened([Part(CPU, [Node("Gather", "com.microsoft")])]), "cuda")


def test_nothing_is_asked_of_a_session_on_the_cpu() -> None:
    check_placement("g", Opened([Part(CPU, [Node("Softmax")])]), "cpu")


def test_a_provider_that_could_not_be_loaded_is_told_as_that() -> None:
    with pytest.raises(MachineError, match="could not load it, and fell back"):
        check_placement("g", Opened([], providers=(CPU,)), "cuda")
