"""Plans that are known to be slow, wrong or impossible where they would run: errors, not warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from bundle import tensors
from bundle.errors import QuantizationError
from bundle.manifest import BOTH, Dialect, Manifest, Target
from bundle.states import State
from graphs.lowering.cuda_kernels import require_operators
from graphs.shared_rows import readers_of_others
from quant.planning.plan import Choice, ComponentPlan
from quant.weights.matmul_nbits import INT8_ACTIVATIONS
from quant.weights.matmul_nbits import refuse_cliffs as refuse_matmul_nbits

_CONTRIB_ONLY = ("matmul_nbits", "bnb4", "qmoe")
_NOT_ON_CUDA = ("w8a8", "w8a8_static", "qmoe")
"""Whose operators have no CUDA kernel in the form that is written (ONNX Runtime 1.31): they would run on the CPU, and
activations would cross the bus at every layer."""
_WITH_ZERO_POINTS = ("hqq", "four-level", "ternary-mean")


def refuse_target(manifest: Manifest, target: Target) -> None:
    """Check that a bundle's graphs can run where they are wanted.

    Raises:
        QuantizationError: TensorRT does not know ONNX Runtime's own operators; or answers and vectors are of one
            decoder, or vectors of one with states; or as `refuse_ports`.
    """
    inputs = {spec.name for part in manifest.components.values() for spec in part.inputs}
    refuse_ports(manifest.name, inputs, manifest.states, target)
    if target != "cpu" and manifest.task == BOTH:
        raise QuantizationError(
            f"{manifest.name} answers and embeds by one decoder, which is for the CPU; export the checkpoint for "
            f"answers alone for --target {target}"
        )
    if target == "cuda" and manifest.embedder is not None and manifest.states:
        raise QuantizationError(
            f"--target cuda: the decoder of {manifest.name} gives its states and keeps no cache, which has no form for "
            "CUDA yet; take --target cpu"
        )
    if target == "tensorrt" and manifest.dialect != "portable":
        raise QuantizationError(
            f"{manifest.name} is in the {manifest.dialect} dialect, whose GroupQueryAttention and MatMulNBits TensorRT "
            "lacks; export the checkpoint with --dialect portable"
        )


def refuse_ports(name: str, inputs: Collection[str], states: Sequence[State], target: Target) -> None:
    """Check that graphs can run where they are wanted, by what they take: a checkpoint's before it has a bundle.

    Args:
        name: Of the model.
        inputs: Of all its graphs.
        states: Of its decoder.
        target: Where they are wanted.

    Raises:
        QuantizationError: Heads are replaced, attention looks forward, images go into a memory or are seen with a
            question, all of which is built for the CPU alone; or sequences choose adapters, which have no form for
            CUDA.
    """
    if target != "cpu" and (memory := [state.input for state in states if state.kind == "memory"]):
        raise QuantizationError(
            f"--target {target}: {name} keeps {', '.join(memory[:2])} of its images, of kind memory, which is "
            "filled in a host's memory alone. Take --target cpu"
        )
    if target != "cpu" and tensors.SEEN_AROUND in inputs:
        raise QuantizationError(
            f"--target {target}: attention of {name} looks forward, which is built and measured on the CPU "
            "alone; leave --target out"
        )
    if target != "cpu" and tensors.MEMORY_SEEN in inputs:
        raise QuantizationError(
            f"--target {target}: tokens of {name}'s answers see all of a prompt beyond their windows, which "
            "is built and measured on the CPU alone; leave --target out"
        )
    if target == "cuda" and tensors.PER_LAYER_INPUTS in inputs:
        raise QuantizationError(
            f"--target cuda: layers of {name} read the caches of others, which is built and measured "
            "on the CPU alone; leave --target out"
        )
    if target != "cpu" and tensors.HEAD_MASK in inputs:
        raise QuantizationError(
            f"{name} was exported with --task-vectors, whose heads are replaced on the CPU alone; export the "
            f"checkpoint without it for --target {target}"
        )
    if target == "cuda" and tensors.ADAPTERS in inputs:
        raise QuantizationError(
            f"--target cuda: {name} holds adapters that a request chooses, which have no form for CUDA yet; "
            "take --target cpu, or merge one adapter with export --lora FOLDER"
        )
    if target != "cpu" and tensors.QUESTION_IDS in inputs:
        raise QuantizationError(
            f"--target {target}: the vision encoder of {name} reads questions of any length beside images, "
            "and its runs on a device have one size each. Take --target cpu"
        )
    if target != "cpu" and tensors.BOXES in inputs:
        raise QuantizationError(
            f"--target {target}: the vision encoder of {name} reads any number of boxes beside images, and "
            "its runs on a device have one size each. Take --target cpu"
        )
    if target != "cpu" and tensors.FULL_LAYERS in inputs:
        raise QuantizationError(
            f"{name} was exported with --skip-visual, which is for the CPU alone: how many rows a layer runs "
            f"is not known before; export the checkpoint without it for --target {target}"
        )


def refuse_graphs(graphs: Iterable[ir.Graph], dialect: Dialect, target: Target) -> None:
    """Check the graphs of a bundle, not yet quantized, for what they cannot do where they are wanted.

    Raises:
        QuantizationError: One holds an operator that has no CUDA kernel, or whose kernel waits for the host; or layers
            read the rows of others.
    """
    if target != "cuda" or dialect != "contrib":
        return
    for graph in graphs:
        if readers := readers_of_others(graph):
            raise QuantizationError(
                f"--target cuda: {len(readers)} layers of {graph.name} read the rows of others, which is built and "
                "measured on the CPU alone; leave --target out"
            )
        require_operators(graph)


def refuse_cliffs(plan: ComponentPlan, dialect: Dialect, target: Target) -> None:
    """Check every layer of a plan.

    Raises:
        QuantizationError: A form that the dialect or the target lacks, or that runs far slower there than it looks.
    """
    is_for_cuda = target == "cuda" and dialect == "contrib"
    if is_for_cuda and plan.recipe == "fp32":
        raise QuantizationError(
            f"{plan.component}: fp32 is not for --target cuda, whose attention over a cache is of float16; take fp16"
        )
    for layer in plan.layers:
        if is_for_cuda and layer.choice.method in _NOT_ON_CUDA:
            raise QuantizationError(
                f"{plan.component}: {layer.name}: {layer.choice.label} has no kernel on CUDA and would run on the CPU; "
                "take fp16, or weights of 8 or 4 bits (int8, int4)"
            )
        _refuse(f"{plan.component}: {layer.name}", layer.choice, dialect, target)


def _refuse(name: str, choice: Choice, dialect: Dialect, target: Target) -> None:
    if choice.form is None:
        return
    if choice.method in _CONTRIB_ONLY and dialect != "contrib":
        raise QuantizationError(
            f"{name}: {choice.label} needs an operator that the {dialect} dialect lacks; "
            "export the checkpoint with --dialect contrib, or take int8, int8-static or int4"
        )
    if choice.method == "float16" and target == "cpu":
        raise QuantizationError(
            f"{name}: a CPU computes float16 through float32, slower than float32 itself; "
            "take int8 for the CPU, or --target cuda or tensorrt"
        )
    if target == "tensorrt" and choice.form.rounding in _WITH_ZERO_POINTS:
        raise QuantizationError(f"{name}: {choice.label} has zero points other than 0, which TensorRT refuses")
    if choice.method == "matmul_nbits":
        refuse_matmul_nbits(name, choice.form, INT8_ACTIVATIONS)
