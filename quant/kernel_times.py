"""Times the forms that one linear layer can take, by the rows that meet it: the table of `quant.planner`.

python -m quant.kernel_times [K N] [--rows 1 8 77 256] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from quant.graphs import make_node, save_graph
from quant.weights.table import load_pass
from quant.weights.weight_pass import Form

FORMS: dict[str, tuple[str, Form] | None] = {
    "float32": None,
    "W8A8": ("w8a8", Form(8)),
    "8-bit b32": ("matmul_nbits", Form(8, 32)),
    "8-bit b128": ("matmul_nbits", Form(8, 128)),
    "4-bit b32": ("matmul_nbits", Form(4, 32)),
    "4-bit b128": ("matmul_nbits", Form(4, 128)),
}
_OPSET = 21
_IR_VERSION = 10
_TURNS = 30


def linear_model(num_inputs: int, num_outputs: int, seed: int = 0) -> ir.Model:
    """Return a model of one MatMul with Gaussian weights."""
    rows = np.random.default_rng(seed).standard_normal((num_inputs, num_outputs)).astype(np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["M", num_inputs])
    weight = ir.val("w", ir.DataType.FLOAT, rows.shape, const_value=ir.tensor(rows, name="w"))
    node = make_node("MatMul", [x, weight], "y")
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], list(node.outputs), nodes=[node], initializers=[weight], opset_imports={"": _OPSET}, name="g")
    return ir.Model(graph, ir_version=_IR_VERSION)


def time_forms(num_inputs: int, num_outputs: int, rows: Sequence[int], threads: int) -> dict[int, dict[str, float]]:
    """Return median milliseconds by number of rows and form; the forms take turns, so that noise meets all alike."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions: dict[str, ort.InferenceSession] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at, (label, form) in enumerate(FORMS.items()):
            model = linear_model(num_inputs, num_outputs)
            if form is not None:
                load_pass(form[0])({"w": form[1]})(model)
            path = Path(folder) / f"{at}.onnx"
            save_graph(model, path)
            sessions[label] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return {num_rows: _take_turns(sessions, num_inputs, num_rows) for num_rows in rows}


def _take_turns(sessions: dict[str, ort.InferenceSession], num_inputs: int, num_rows: int) -> dict[str, float]:
    x = np.random.default_rng(1).standard_normal((num_rows, num_inputs)).astype(np.float32)
    times_ms: dict[str, list[float]] = {label: [] for label in sessions}
    for _ in range(_TURNS):
        for label, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"x": x})
            times_ms[label].append((time.perf_counter() - started) * 1e3)
    return {label: statistics.median(values) for label, values in times_ms.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the forms of one linear layer, in milliseconds.")
    parser.add_argument("shape", type=int, nargs="*", default=[768, 3072], metavar="K N")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 77, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if len(options.shape) != 2:
        parser.error(f"a shape is two numbers K N, not {options.shape}")
    num_inputs, num_outputs = options.shape
    print(f"{'x'.join(map(str, options.shape)):>12}" + "".join(f"{label:>12}" for label in FORMS))
    for num_rows, times_ms in time_forms(num_inputs, num_outputs, options.rows, options.threads).items():
        print(f"{f'M = {num_rows}':>12}" + "".join(f"{value:12.3f}" for value in times_ms.values()))


if __name__ == "__main__":
    main()
