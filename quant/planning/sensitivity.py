"""How much a model's answers change when one of its layers is stored in fewer bits.

Only weights are exchanged: each layer in turn gets the float32 numbers that its form stands for, so the rounding of
activations that some operators add (W8A8, MatMulNBits at accuracy_level 4) is not in the loss. All of it happens in one
session, whose weights are initializers that a run may override; nothing is written, and no graph is rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import ComponentName
from bundle.report import LayerSensitivity, LossMeasure
from graphs.layers import Float32, Linear, find_linears
from graphs.store import open_graph
from quant.calibration.feeds import FeedSource, spread
from quant.calibration.sections import open_part
from quant.calibration.statistics import InputStatistics
from quant.planning.plan import loud_bytes
from quant.quality.measures import cosines, kl_divergences
from quant.rounding.block_codes import BlockCodes
from quant.weights.layer_codes import refuse_rounding, round_layer, round_rows

MIN_SAMPLES = 8
"""Fewer say too little of a layer: a time limit that would need fewer is refused."""

Array = NDArray[Any]
Progress = Callable[[str], None]


class Probe:
    """A graph of an fp32 bundle on samples, its linear layers given other weights at each run.

    Args:
        source: The fp32 bundle and the samples it is run on.
        component: The graph.

    Attributes:
        linears: The layers by weight name.
        measure: What its losses are.
        seconds: How long one pass over the samples took.

    Raises:
        QuantizationError: No samples, no linear layer, or a graph that cannot be loaded.
    """

    def __init__(self, source: FeedSource, component: ComponentName) -> None:
        path = source.bundle.graph_path(component)
        model = open_graph(path)
        self.linears: dict[str, Linear] = {linear.name: linear for linear in find_linears(model.graph)}
        if not self.linears:
            raise QuantizationError(f"{component}: the graph has no linear layer, so there is nothing to measure")
        role = source.bundle.manifest.components[component].role
        self.measure: LossMeasure = "kl" if role == "decoder" else "cosine_distance"
        self._samples = source.of(component)
        self._session = open_part(_overridable(model, self.linears), path.parent, source.settings)
        started = time.monotonic()
        self._expected = [self._output(feeds) for feeds in self._samples]
        self.seconds = time.monotonic() - started

    @property
    def num_samples(self) -> int:
        """Return how many samples a loss is the mean over."""
        return len(self._samples)

    def keep(self, most: int) -> None:
        """Let go of all but so many samples, spread evenly."""
        self.seconds *= min(1.0, most / self.num_samples)
        self._samples, self._expected = spread(self._samples, most), spread(self._expected, most)

    def loss(self, weights: Mapping[str, Float32]) -> float:
        """Return the mean loss over all positions with some layers' weights exchanged.

        Args:
            weights: [N, K] float32 by weight name.

        Raises:
            QuantizationError: The loss is no number: the weights, or what they lead to, are not finite.
        """
        overrides = {name: self._as_stored(name, rows) for name, rows in weights.items()}
        found = [self._output({**feeds, **overrides}) for feeds in self._samples]
        compare = kl_divergences if self.measure == "kl" else _cosine_distances
        losses = np.concatenate([compare(*pair) for pair in zip(self._expected, found, strict=True)])
        if not np.isfinite(losses).all():
            raise QuantizationError(f"with {', '.join(weights)} rounded, answers are not finite; try another form")
        return max(0.0, float(losses.mean()))  # 0 may come out as -1e-17

    def _as_stored(self, name: str, rows: Float32) -> Float32:
        return np.ascontiguousarray(rows if self.linears[name].is_transposed else rows.T)

    def _output(self, feeds: Mapping[str, Array]) -> Array:
        """Return logits or embeddings, one row per position."""
        (output,) = self._session.run(feeds).values()
        return np.asarray(output).reshape(-1, output.shape[-1])


def measure_sensitivity(
    source: FeedSource,
    component: ComponentName,
    forms: Mapping[str, Sequence[Form]],
    *,
    inputs: Mapping[str, InputStatistics] | None = None,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> list[LayerSensitivity]:
    """Return what each layer costs in each of its forms, the same numbers at every call with the same samples.

    Args:
        source: The fp32 bundle and the samples it is run on.
        component: The graph.
        forms: The forms to try by weight name.
        inputs: Statistics for roundings that are calibrated, by weight name.
        max_seconds: Take fewer samples where all of them would take longer; None: take all, however long.
        progress: Called with an estimate, and at every tenth of the work.

    Raises:
        QuantizationError: No samples, an unknown layer, a form that cannot be made, or a time limit too short for
            `MIN_SAMPLES` samples.
    """
    probe, say, inputs = Probe(source, component), progress or (lambda line: None), inputs or {}
    missing = forms.keys() - probe.linears.keys()
    if missing:
        raise QuantizationError(f"{component}: the graph has no linear layer named {', '.join(sorted(missing))}")
    work = [(probe.linears[name], form) for name, wanted in forms.items() for form in wanted]
    for linear, form in work:
        refuse_rounding(linear.name, form, inputs)  # now, not after an hour
    fit_time(probe, len(work), max_seconds)
    say(f"{component}: {len(work)} trials on {probe.num_samples} samples, about {probe.seconds * len(work):.0f} s")
    table = []
    for at, (linear, form) in enumerate(work):
        if at and at * 10 // len(work) > (at - 1) * 10 // len(work):
            say(f"{component}: {at} of {len(work)} trials done")
        table.append(_measured(probe, component, linear, form, inputs))
    return table


def _measured(
    probe: Probe, component: ComponentName, linear: Linear, form: Form, inputs: Mapping[str, InputStatistics]
) -> LayerSensitivity:
    rows, weight_bytes = stored(linear, form, inputs)
    return LayerSensitivity(
        component=component,
        layer=linear.name,
        form=form,
        measure=probe.measure,
        loss=probe.loss({linear.name: rows}),
        num_samples=probe.num_samples,
        weight_bytes=weight_bytes,
        fp32_bytes=4 * linear.num_inputs * linear.num_outputs,
    )


def stored(linear: Linear, form: Form, inputs: Mapping[str, InputStatistics]) -> tuple[Float32, int]:
    """Return the weights [N, K] that a form stands for, and the bytes that it takes.

    Args:
        linear: The layer.
        form: Without a block size: int8 with one scale per output, as W8A8 stores it.
        inputs: For roundings that are calibrated, by weight name.
    """
    if form.block_size is None:
        rows = round_rows(linear.rows(), form, inputs.get(linear.name))
        per_output = rows.scales.nbytes + len(rows.scales)  # a scale and a zero point
        return rows.weights(), rows.codes.nbytes + per_output + rows.float_rows.nbytes // 2
    layer = round_layer(linear, form, form.block_size, inputs)
    beside = layer.float_rows.nbytes // 2 + loud_bytes(form, linear.num_inputs)
    return layer.weights(linear.num_inputs), _num_bytes(layer.codes) + beside


def _num_bytes(blocks: BlockCodes) -> int:
    scales = blocks.scales.nbytes if blocks.steps is None else blocks.scales.size + blocks.steps.nbytes
    total = blocks.codes.size * blocks.bits // 8 + scales
    if blocks.zero_points is not None:
        total += len(blocks.zero_points) * -(-blocks.zero_points.shape[1] * blocks.bits // 8)
    if blocks.offsets is not None:
        total += blocks.offsets.nbytes
    return total + (0 if blocks.rest is None else _num_bytes(blocks.rest))


def _overridable(model: ir.Model, linears: Mapping[str, Linear]) -> bytes:
    """Return the graph up to its first output, the layers' weights made inputs that have a default."""
    graph = model.graph
    del graph.outputs[1:]  # keys and values of the cache
    graph.inputs.extend(linear.weight for linear in linears.values())
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def fit_time(probe: Probe, num_trials: int, max_seconds: float | None) -> None:
    """Let the probe keep as many samples as the time allows."""
    expected = probe.seconds * num_trials
    if max_seconds is None or expected <= max_seconds:
        return
    most = int(probe.num_samples * max_seconds / expected)
    if most < min(MIN_SAMPLES, probe.num_samples):
        needed = expected * MIN_SAMPLES / probe.num_samples
        raise QuantizationError(
            f"{num_trials} trials of {MIN_SAMPLES} samples take about {needed:.0f} s, more than the {max_seconds:g} s "
            "allowed. Allow more, or try fewer forms"
        )
    probe.keep(most)


def _cosine_distances(expected: Array, found: Array) -> NDArray[np.float64]:
    return 1.0 - cosines(expected, found)
