"""Small ONNX graphs written node by node, and a way to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from graphs.experts import moe_attributes, operands
from graphs.store import CONTRIB, make_node, save_graph
from runtime.providers import session_options
from runtime.settings import RuntimeSettings

Arrays = Mapping[str, NDArray[Any]]
NodeSpec = tuple[str, list[str], str, dict[str, Any]]


def build_model(
    inputs: Mapping[str, tuple[ir.DataType, list[int | str]]],
    nodes: list[NodeSpec],
    weights: Arrays,
    outputs: list[str],
    opset: int = 21,
) -> ir.Model:
    """Return a model of (op_type, inputs, output, attributes) nodes over named values."""
    values = {name: ir.val(name, dtype, shape) for name, (dtype, shape) in inputs.items()}
    graph_inputs = list(values.values())
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        values[name] = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
    initializers = [values[name] for name in weights]
    built = []
    for op_type, sources, output, attributes in nodes:
        values[output] = ir.Value(name=output, type=ir.TensorType(ir.DataType.FLOAT))
        built.append(ir.node(op_type, [values[s] for s in sources], attributes, outputs=[values[output]], name=output))
    graph = ir.Graph(
        graph_inputs,
        [values[name] for name in outputs],
        nodes=built,
        initializers=initializers,
        opset_imports={"": opset},
        name="test",
    )
    return ir.Model(graph, ir_version=10)


def build_mixture(
    name: str,
    router: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    per_token: int = 1,
    is_normalised: bool = False,
) -> ir.Model:
    """Return a model with outputs s and y of a router [D, E] and the experts `name`, as export writes them."""
    weights = {"layers.0.mlp.router.weight": router, f"{name}.gate_up_proj": first, f"{name}.down_proj": second}
    router_node: NodeSpec = ("MatMul", ["x", "layers.0.mlp.router.weight"], "s", {})
    model = build_model({"x": (ir.DataType.FLOAT, ["T", len(router)])}, [router_node], weights, ["s"])
    graph = model.graph
    stacked = (graph.initializers[f"{name}.{part}"] for part in ("gate_up_proj", "down_proj"))
    node = make_node(
        "MoE",
        operands(graph.inputs[0], graph.outputs[0], *stacked),
        "y",
        moe_attributes(per_token, is_normalised=is_normalised),
        CONTRIB,
    )
    graph.append(node)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(node.outputs[0])
    graph.opset_imports[CONTRIB] = 1
    return model


class Runner:
    """Runs models through files, as bundles do, and keeps the last optimized graph."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, model: ir.Model, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs of a model."""
        path = self._folder / "model.onnx"
        save_graph(model, path)
        options = session_options(ort, RuntimeSettings(intra_threads=1))
        options.optimized_model_filepath = str(self._folder / "optimized.onnx")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found: list[NDArray[Any]] = session.run(None, feeds)
        return found

    def optimized_ops(self) -> list[str]:
        """Return the operators that ONNX Runtime really ran, in order."""
        return [node.op_type for node in self.optimized_graph()]

    def optimized_graph(self) -> ir.Graph:
        """Return what ONNX Runtime made of the last model."""
        return ir.load(self._folder / "optimized.onnx").graph
