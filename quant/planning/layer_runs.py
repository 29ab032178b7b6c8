"""Runs of single layers on this machine, in the forms that they can take: what `quant.planning.layer_times` keeps.

Everything is arranged so that what else the machine does changes little: a product runs on one thread, whose processor
time is counted, not the time of the wall clock (two threads that share their cores with others take one or two times
as long, at random); all layers take turns; and each is opened anew several times, for where its weights happen to lie
in memory changes its time by a fifth and more, for as long as it is open. The order of the turns is another one each
time, for a small product is slower behind a large one.

Products of one row find their weights in memory, not in the CPU's cache: so does each step of a model that is larger
than it, and a form that reads fewer bytes may be the slower one otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.machine import largest_cache_bytes
from graphs.layers import Float32
from graphs.store import make_node, save_graph
from quant.calibration.statistics import InputStatistics
from quant.planning.plan import Choice
from quant.weights.table import load_pass
from runtime.graph import Graph
from runtime.settings import RuntimeSettings
from runtime.turns import Turns, milliseconds_of, thread_milliseconds_of

BUDGET_S = 6.0
"""For all runs; making the layers comes on top."""

_OPENINGS = 5  # odd, for the middle one is asked for
_TURNS = 9  # of each opening
_OPSET = 21
_IR_VERSION = 10
_MOST_WEIGHTS = 1 << 22  # of a timed layer; a larger one is timed with fewer outputs and the time scaled
_LEAST_SHARE = 0.1  # of what was seen that is a layer's own, however much an empty graph takes
_EMPTY, _FLUSH = "empty", "flush"
"""What a graph of no layers, and the emptying of the cache, are called among those that take turns."""
_CACHES = 2  # read to empty one
_USUAL_CACHE_BYTES = 32 << 20  # where the system does not say
_MOST_CACHE_BYTES = 256 << 20

_Layer = tuple[int, int, Choice]


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

    @property
    def layer(self) -> _Layer:
        """Return what is opened; several numbers of rows run through it."""
        return self.num_inputs, self.num_outputs, self.choice

    @property
    def run_outputs(self) -> int:
        """Return how many of its outputs are computed."""
        return min(self.num_outputs, max(_MOST_WEIGHTS // self.num_inputs, 1))


Openings = Sequence[Sequence[float]]
"""Milliseconds of each run, by opening; at least one run of at least one opening."""

TimeLayers = Callable[[Sequence[Timed]], Mapping[str, Openings]]
"""Returns the runs of each measurement by `Timed.key`."""


@dataclass(frozen=True)
class Seen:
    """What the runs of one measurement tell.

    Attributes:
        least_ms: The least of all runs: nothing that comes between makes a product quicker.
        usual_ms: The least of a middling opening: how far `least_ms` may be luck.
    """

    least_ms: float
    usual_ms: float

    @classmethod
    def of(cls, openings: Openings) -> Seen:
        """Return what runs tell."""
        least_ms = [min(runs) for runs in openings]
        return cls(min(least_ms), float(np.median(least_ms)))


def time_layers(
    wanted: Sequence[Timed],
    threads: int = 1,
    *,
    num_openings: int = _OPENINGS,
    turns: int = _TURNS,
    budget_s: float = BUDGET_S,
) -> dict[str, list[list[float]]]:
    """Return milliseconds by key, of all runs of each opening.

    All layers are held at once and take turns, those of fewest rows first behind an emptied cache, so that noise meets
    all alike. What the call of an empty graph takes is subtracted: in a whole graph it is paid once, not per layer.

    Args:
        wanted: Any order.
        threads: Per operator; 0 means one per physical core. Processor time is counted for one, the wall clock's for
            more, which other programs disturb.
        num_openings: How often each layer is opened.
        turns: Most runs of each in an opening.
        budget_s: Of all openings; in none of them is a turn begun after its share, once three have counted.
    """
    opening = Turns(warmup=1, repeats=turns, budget_s=budget_s / num_openings)
    with tempfile.TemporaryDirectory() as folder:
        paths = _save_models(wanted, Path(folder))
        told = [opening.run(_works(in_turn(wanted, seed), paths, threads)) for seed in range(num_openings)]
    overhead_ms = min(min(runs[_EMPTY]) for runs in told)
    return {
        timed.key: [[_net_ms(timed, seen_ms, overhead_ms) for seen_ms in runs[timed.key]] for runs in told]
        for timed in wanted
    }


def _net_ms(timed: Timed, seen_ms: float, overhead_ms: float) -> float:
    """Return a layer's own time, of whole outputs where fewer were computed."""
    own_ms = max(seen_ms - overhead_ms, _LEAST_SHARE * seen_ms)
    return own_ms * timed.num_outputs / timed.run_outputs


def _save_models(wanted: Iterable[Timed], folder: Path) -> dict[_Layer | None, Path]:
    """Write a model of each layer, and under None an empty one."""
    layers = {timed.layer: timed for timed in wanted}
    paths: dict[_Layer | None, Path] = {None: folder / "empty.onnx"}
    save_graph(_empty_model(), paths[None])
    for number, (layer, timed) in enumerate(layers.items()):
        paths[layer] = folder / f"{number}.onnx"
        save_graph(_timed_model(timed), paths[layer])
    return paths


def in_turn(wanted: Sequence[Timed], seed: int) -> list[Timed]:
    """Return measurements by rising rows, so that no weights are met twice behind each other; else at random."""
    order = np.random.default_rng(seed).permutation(len(wanted))
    return sorted((wanted[at] for at in order), key=lambda timed: timed.rows)


def _works(
    wanted: Iterable[Timed], paths: Mapping[_Layer | None, Path], threads: int
) -> dict[str, Callable[[], float]]:
    """Open all layers, and return what to run in turns: each tells its milliseconds."""
    settings = RuntimeSettings(intra_threads=threads)
    graphs = {layer: Graph(path, settings) for layer, path in paths.items()}
    clock = thread_milliseconds_of if threads == 1 else milliseconds_of
    rows = {(timed.num_inputs, timed.rows): _activations(timed) for timed in wanted}
    one_row = np.zeros((1, 16), np.float32)
    cache = np.ones(_CACHES * min(largest_cache_bytes() or _USUAL_CACHE_BYTES, _MOST_CACHE_BYTES) // 8)
    works: dict[str, Callable[[], float]] = {
        _FLUSH: lambda: float(cache.sum()),
        _EMPTY: lambda: _second_run_ms(clock, graphs[None], one_row),
    }
    for timed in wanted:
        works[timed.key] = partial(_run_ms, clock, graphs[timed.layer], rows[timed.num_inputs, timed.rows])
    return works


def _run_ms(clock: Callable[[Callable[[], object]], float], graph: Graph, x: Float32) -> float:
    return clock(lambda: graph.run({"x": x}))


def _second_run_ms(clock: Callable[[Callable[[], object]], float], graph: Graph, x: Float32) -> float:
    """Return the time of a run behind another one, which warms up: other graphs ran before it."""
    _run_ms(clock, graph, x)
    return _run_ms(clock, graph, x)


def _activations(timed: Timed) -> Float32:
    return np.random.default_rng(1).standard_normal((timed.rows, timed.num_inputs)).astype(np.float32)


def _timed_model(timed: Timed) -> ir.Model:
    model = _linear_model(timed.num_inputs, timed.run_outputs)
    if timed.choice.form is not None:
        inputs = InputStatistics(1, np.full(timed.num_inputs, 4, np.float32))  # Gaussian rows stay within it
        load_pass(timed.choice.method)({"w": timed.choice.form}, {"w": inputs})(model)
    return model


def _linear_model(num_inputs: int, num_outputs: int) -> ir.Model:
    """Return a model of one MatMul with Gaussian weights."""
    rows = np.random.default_rng(0).standard_normal((num_inputs, num_outputs), np.float32)
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
