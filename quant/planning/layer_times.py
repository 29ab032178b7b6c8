"""Milliseconds of the forms that a linear layer can take on this machine, by the rows that meet it.

`tuned_times` measures the real shapes of a graph once and keeps the figures under the cache folder, by CPU, cores and
ONNX Runtime version. `builtin_times` is the table of `BUILTIN`, scaled by the number of weights; it serves where
nothing was measured.

python -m quant.planning.layer_times [K N] [--rows 1 8 77 256] [--threads 1]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.machine import cpu_name, num_usable_cores
from graphs.layers import Float32
from graphs.store import make_node, save_graph
from quant.calibration.statistics import InputStatistics
from quant.planning.plan import KEPT, Choice
from quant.weights.table import load_pass
from runtime.graph import Graph
from runtime.onnx_runtime import runtime_version
from runtime.settings import RuntimeSettings
from runtime.turns import Quartiles, Turns, milliseconds_of

FORMS = (
    KEPT,
    Choice("w8a8", Form(8)),
    Choice("w8a8_static", Form(8)),
    *(Choice("matmul_nbits", Form(bits, block)) for bits in (8, 4, 2) for block in (32, 64, 128)),
    *(Choice("matmul_nbits", Form(2, block, "ternary-mean")) for block in (32, 64, 128)),
    *(Choice("matmul_nbits", Form(2, block, "ternary-planes")) for block in (32, 64, 128)),
    Choice("bnb4", Form(4, 64, "nf4")),
)
"""What the command times."""

BUILTIN_SHAPE = (768, 3072)
BUILTIN: dict[str, dict[int, float]] = {
    "fp32": {1: 0.580, 8: 0.757, 77: 3.519, 256: 10.979},
    "w8a8 8-bit": {1: 0.191, 8: 0.237, 77: 1.104, 256: 3.345},
    "w8a8_static 8-bit": {1: 0.146, 8: 0.198, 77: 0.954, 256: 2.956},
    "matmul_nbits 8-bit b32": {1: 0.134, 8: 0.333, 77: 2.471, 256: 8.098},
    "matmul_nbits 8-bit b64": {1: 0.099, 8: 0.292, 77: 2.250, 256: 7.359},
    "matmul_nbits 8-bit b128": {1: 0.084, 8: 0.257, 77: 1.886, 256: 6.165},
    "matmul_nbits 4-bit b32": {1: 0.090, 8: 0.330, 77: 2.790, 256: 9.165},
    "matmul_nbits 4-bit b64": {1: 0.082, 8: 0.316, 77: 2.721, 256: 8.885},
    "matmul_nbits 4-bit b128": {1: 0.061, 8: 0.246, 77: 2.029, 256: 6.707},
    "matmul_nbits 2-bit b32": {1: 0.111, 8: 0.565, 77: 5.187, 256: 17.217},
    "matmul_nbits 2-bit b64": {1: 0.069, 8: 0.323, 77: 2.890, 256: 9.575},
    "matmul_nbits 2-bit b128": {1: 0.060, 8: 0.288, 77: 2.577, 256: 8.525},
    "matmul_nbits 2-bit b32 ternary-mean": {1: 0.144, 8: 0.607, 77: 5.444, 256: 17.986},
    "matmul_nbits 2-bit b64 ternary-mean": {1: 0.089, 8: 0.353, 77: 3.069, 256: 10.152},
    "matmul_nbits 2-bit b128 ternary-mean": {1: 0.071, 8: 0.312, 77: 2.726, 256: 9.024},
    "matmul_nbits 2-bit b32 ternary-planes": {1: 0.231, 8: 1.146, 77: 10.469, 256: 34.814},
    "matmul_nbits 2-bit b64 ternary-planes": {1: 0.139, 8: 0.645, 77: 5.857, 256: 19.482},
    "matmul_nbits 2-bit b128 ternary-planes": {1: 0.118, 8: 0.580, 77: 5.211, 256: 17.424},
    "bnb4 4-bit b64 nf4": {1: 1.338, 8: 1.792, 77: 4.900, 256: 12.500},
}
"""Milliseconds by form and rows for `BUILTIN_SHAPE`, on an AMD EPYC (avx512_vnni, no AMX), ONNX Runtime 1.31.1, one
thread of a shared machine, lower quartile of 30, the lesser of two runs: read ratios, not digits. Printed by
`python -m quant.planning.layer_times`."""

_OPSET = 21
_IR_VERSION = 10
_MOST_TURNS = 15
_BUDGET_S = 6.0
_MOST_WEIGHTS = 1 << 22  # of a timed layer; a larger one is timed with fewer outputs and the time scaled
_FORMAT = 1
_EMPTY = "empty"
"""What a graph of no layers is called among those that take turns."""
_SAME_ROUNDING = dict.fromkeys(("hqq", "gptq", "ternary", "ternary-gptq", "four-level"), "rtn")
_SAME_ROUNDING["fp4"] = "nf4"
"""Roundings that differ in the codes alone take the same time as the quickest one to compute."""
_SAME_METHOD = {"qmoe": "matmul_nbits", "qdq_int4": "matmul_nbits"}
"""QMoE multiplies one expert as MatMulNBits does; ONNX Runtime fuses int4 in standard operators to MatMulNBits."""

Times = dict[str, float]


@dataclass(frozen=True)
class Timed:
    """One measurement.

    Attributes:
        num_inputs: K.
        num_outputs: N.
        choice: Operator and form.
        rows: M.
    """

    num_inputs: int
    num_outputs: int
    choice: Choice
    rows: int

    @property
    def key(self) -> str:
        """Return its name in the cache."""
        return f"{self.num_inputs}x{self.num_outputs} {self.choice.label} M={self.rows}"


class LayerTimes:
    """Times by shape, form and rows, between and beyond the measured ones.

    Args:
        measured: Milliseconds by `Timed.key`.
        source: Where they come from, for people.
    """

    def __init__(self, measured: Mapping[str, float], source: str) -> None:
        self.source = source
        self._points: dict[tuple[int, int, str], list[tuple[int, float]]] = {}
        for key, value in sorted(measured.items()):
            shape, label, rows = _parse(key)
            self._points.setdefault((*shape, label), []).append((rows, value))
        for points in self._points.values():
            points.sort()

    def ms(self, num_inputs: int, num_outputs: int, choice: Choice, rows: float) -> float:
        """Return the time of one product of [rows, K] by [K, N].

        Between two measured numbers of rows the time is a straight line, below the first it is the first's, beyond the
        last it grows with the rows. A shape that was not measured takes the built-in table's time per weight.

        Raises:
            QuantizationError: The form was never timed.
        """
        label = _timed_as(choice).label
        points = self._points.get((num_inputs, num_outputs, label))
        if points is not None:
            return _between(points, rows)
        if label not in BUILTIN:
            raise QuantizationError(f"{label} was never timed; known: {', '.join(BUILTIN)}")
        share = num_inputs * num_outputs / (BUILTIN_SHAPE[0] * BUILTIN_SHAPE[1])
        return share * _between(sorted(BUILTIN[label].items()), rows)


def builtin_times() -> LayerTimes:
    """Return the times that need no measuring: the table above, per weight."""
    return LayerTimes({}, f"the built-in table of {BUILTIN_SHAPE[0]} x {BUILTIN_SHAPE[1]}, not this machine's")


def tuned_times(wanted: Iterable[Timed], folder: Path, progress: Callable[[str], None], threads: int = 0) -> LayerTimes:
    """Return the times of this machine, measuring those that the folder does not hold yet.

    Args:
        wanted: What a planner will ask for.
        folder: Holds one file per CPU, cores, threads and runtime version; made where it is missing.
        progress: Told when something is measured.
        threads: Per operator; 0 means one per physical core.
    """
    path = folder / f"layer-times-{_machine_digest(threads)}.json"
    known = _read(path)
    by_key = {timed.key: timed for timed in map(_as_timed, wanted)}
    missing = [timed for key, timed in by_key.items() if key not in known]
    if missing:
        progress(
            f"timing {len(missing)} layer forms on this machine, about {_BUDGET_S:.0f} s; kept in {path}, "
            "which may be deleted to measure again"
        )
        known |= measure(missing, threads)
        _write(path, known)
    return LayerTimes(known, f"measured on this machine ({cpu_name()}, {num_usable_cores()} cores)")


def cache_folder() -> Path:
    """Return where measured times are kept: $XDG_CACHE_HOME/pocketvlm, or ~/.cache/pocketvlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketvlm"


def measure(wanted: Sequence[Timed], threads: int = 0, turns: int = _MOST_TURNS, budget_s: float = _BUDGET_S) -> Times:
    """Return milliseconds by key: the lower quartile of what was seen, for what else runs here only adds time.

    All layers are held at once and take turns, so that noise meets all alike and a small model finds its weights in the
    CPU's cache, as it will when it is served, and a large one does not. What the call of an empty graph takes is
    subtracted: in a whole graph it is paid once, not per layer.

    Args:
        wanted: Any order.
        threads: Per operator; 0 means one per physical core.
        turns: Most runs of each.
        budget_s: No turn is begun after it, once three have counted.
    """
    layers = {(timed.num_inputs, timed.num_outputs, timed.choice): timed for timed in wanted}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            at: _session(_timed_model(timed), Path(folder) / f"{number}.onnx", threads)
            for number, (at, timed) in enumerate(layers.items())
        }
        inputs = {(timed.num_inputs, timed.rows): _activations(timed) for timed in wanted}
        empty = _session(_empty_model(), Path(folder) / "empty.onnx", threads)
        works: dict[str, Callable[[], float]] = {_EMPTY: partial(_second_run_ms, empty, np.zeros((1, 16), np.float32))}
        for timed in sorted(wanted, key=lambda timed: timed.rows):  # the same weights twice in a row would be cached
            session = sessions[timed.num_inputs, timed.num_outputs, timed.choice]
            works[timed.key] = partial(_run_ms, session, inputs[timed.num_inputs, timed.rows])
        runs = Turns(warmup=1, repeats=turns, budget_s=budget_s).run(works)
    seen_ms = {key: Quartiles.of(values).low for key, values in runs.items()}
    return {timed.key: _net_ms(timed, seen_ms[timed.key], seen_ms[_EMPTY]) for timed in wanted}


def _net_ms(timed: Timed, seen_ms: float, overhead_ms: float) -> float:
    """Return a layer's own time: at least a tenth of what was seen, whole outputs where fewer were timed."""
    own_ms = max(seen_ms - overhead_ms, 0.1 * seen_ms)
    return own_ms * timed.num_outputs / _timed_outputs(timed)


def _timed_outputs(timed: Timed) -> int:
    return min(timed.num_outputs, max(_MOST_WEIGHTS // timed.num_inputs, 1))


def _run_ms(session: Graph, x: Float32) -> float:
    return milliseconds_of(lambda: session.run({"x": x}))


def _second_run_ms(session: Graph, x: Float32) -> float:
    """Return the time of a run behind another one, which warms up: other sessions ran before it."""
    _run_ms(session, x)
    return _run_ms(session, x)


def _session(model: ir.Model, path: Path, threads: int) -> Graph:
    save_graph(model, path)
    return Graph(path, RuntimeSettings(intra_threads=threads))


def _activations(timed: Timed) -> Float32:
    return np.random.default_rng(1).standard_normal((timed.rows, timed.num_inputs)).astype(np.float32)


def _timed_model(timed: Timed) -> ir.Model:
    model = linear_model(timed.num_inputs, _timed_outputs(timed))
    if timed.choice.form is not None:
        inputs = InputStatistics(1, np.full(timed.num_inputs, 4, np.float32))  # Gaussian rows stay within it
        load_pass(timed.choice.method)({"w": timed.choice.form}, {"w": inputs})(model)
    return model


def linear_model(num_inputs: int, num_outputs: int, seed: int = 0) -> ir.Model:
    """Return a model of one MatMul with Gaussian weights."""
    rows = np.random.default_rng(seed).standard_normal((num_inputs, num_outputs), np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["M", num_inputs])
    weight = ir.val("w", ir.DataType.FLOAT, rows.shape, const_value=ir.tensor(rows, name="w"))
    return _model(x, make_node("MatMul", [x, weight], "y"), [weight])


def _empty_model() -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["M", 16])
    return _model(x, make_node("Neg", [x], "y"), [])


def _model(x: ir.Value, node: ir.Node, weights: Sequence[ir.Value]) -> ir.Model:
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], list(node.outputs), nodes=[node], initializers=weights, opset_imports={"": _OPSET}, name="g")
    return ir.Model(graph, ir_version=_IR_VERSION)


def _as_timed(timed: Timed) -> Timed:
    return replace(timed, choice=_timed_as(timed.choice))


def _timed_as(choice: Choice) -> Choice:
    """Return a choice that takes the same time and is quick to make."""
    if choice.form is None:
        return choice
    rounding = _SAME_ROUNDING.get(choice.form.rounding, choice.form.rounding)
    return Choice(_SAME_METHOD.get(choice.method, choice.method), replace(choice.form, rounding=rounding))


def _parse(key: str) -> tuple[tuple[int, int], str, int]:
    shape, _, rest = key.partition(" ")
    label, _, rows = rest.rpartition(" M=")
    num_inputs, _, num_outputs = shape.partition("x")
    return (int(num_inputs), int(num_outputs)), label, int(rows)


def _between(points: Sequence[tuple[int, float]], rows: float) -> float:
    """Return the time at a number of rows from [(rows, ms)] in rising order."""
    for (low, low_ms), (high, high_ms) in pairwise(points):
        if low <= rows <= high:
            return low_ms + (high_ms - low_ms) * (rows - low) / (high - low)
    edge, edge_ms = points[0] if rows < points[0][0] else points[-1]
    return edge_ms * max(rows / edge, 1.0)


def _machine_digest(threads: int) -> str:
    facts = f"{cpu_name()}|{num_usable_cores()}|{threads}|{runtime_version()}|{_FORMAT}"
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _read(path: Path) -> Times:
    """Return what an earlier run kept; nothing where the file is absent or is not what we wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        times = {str(key): float(value) for key, value in found.items()}
        LayerTimes(times, "")
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return times if all(0 < value < float("inf") for value in times.values()) else {}


def _write(path: Path, times: Times) -> None:
    """Keep times for the next run; a place that cannot be written costs that run a few seconds, not this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(times, indent=1, sort_keys=True), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        return


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one shape."""
    parser = argparse.ArgumentParser(description="Time the forms of one linear layer, in milliseconds.")
    parser.add_argument("shape", type=int, nargs="*", default=list(BUILTIN_SHAPE), metavar="K N")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 77, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if len(options.shape) != 2:
        parser.error(f"a shape is two numbers K N, not {options.shape}")
    num_inputs, num_outputs = options.shape
    wanted = [Timed(num_inputs, num_outputs, choice, rows) for choice in FORMS for rows in options.rows]
    times = measure(wanted, options.threads, turns=2 * _MOST_TURNS, budget_s=5 * _BUDGET_S)
    width = max(len(choice.label) for choice in FORMS)
    print(f"{'x'.join(map(str, options.shape)):{width}}" + "".join(f"{f'M={rows}':>10}" for rows in options.rows))
    for choice in FORMS:
        cells = (times[Timed(num_inputs, num_outputs, choice, rows).key] for rows in options.rows)
        print(f"{choice.label:{width}}" + "".join(f"{value:10.3f}" for value in cells))


if __name__ == "__main__":
    main()
