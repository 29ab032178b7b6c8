"""Runs a bundle on samples and collects what meets each of its linear layers.

A Gram matrix takes 4 K^2 bytes, 378 MB where K is 9,728: those of a whole decoder can be larger than its weights. So
layers come in groups that fit `MOST_BYTES`, first layers first, and whoever calibrates with error feedback rounds the
layers of a group and lets its Grams go before the next group is computed. However many groups there are, every node
runs once per sample (see `quant.calibration.sections`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.manifest import ComponentName
from graphs.layers import Linear, find_linears
from graphs.store import open_graph
from quant.calibration.feeds import FeedSource
from quant.calibration.sections import SectionedGraph, cut
from quant.calibration.statistics import InputStatistics

MOST_BYTES = 512 << 20
"""Grams and inputs of a group of layers, unless those of a single input take more."""

_ROWS_PER_RUN = 2048  # an image and a question, for the estimate of what the inputs of a group take

Progress = Callable[[str], None]
Group = dict[str, InputStatistics]


class Calibrator:
    """Statistics of a bundle's layers, a group of layers at a time.

    Args:
        source: The fp32 bundle and the samples it is run on.
        progress: Called with a line per group.
    """

    def __init__(self, source: FeedSource, progress: Progress | None = None) -> None:
        self._source = source
        self._say = progress or (lambda line: None)

    def groups(
        self, component: ComponentName, *, grams: bool = False, layers: Collection[str] | None = None
    ) -> Iterator[Group]:
        """Yield the statistics of a graph's linear layers by weight name, in groups that fit `MOST_BYTES`.

        Layers that read the same value share one `InputStatistics` and one group. While a group is computed the caller
        should hold none: `del group` at the end of a loop's body, for a loop's variable lives on.

        Args:
            component: The graph.
            grams: Whether Gram matrices are wanted.
            layers: The layers wanted; None: all.

        Raises:
            QuantizationError: No samples, no such layers, a graph that cannot run, or inputs that are not finite.
        """
        path = self._source.bundle.graph_path(component)
        model = open_graph(path)
        groups = _grouped(_inputs_of(model.graph, component, layers), grams)
        sections = cut(model.graph, [[each.value for each in group] for group in groups])
        graph = SectionedGraph(path, self._source.of(component), self._source.settings)
        for at, (group, section) in enumerate(zip(groups, sections, strict=True)):
            self._say(f"{component}: calibrating on {graph.num_samples} runs, group {at + 1} of {len(groups)}")
            yield _collect(graph.run(section), group, grams)  # kept by no name here: the caller lets it go


def calibrate(
    source: FeedSource,
    layers: Mapping[ComponentName, Collection[str] | None],
    *,
    grams: bool = False,
    progress: Progress | None = None,
) -> dict[ComponentName, Group]:
    """Return the statistics of several graphs, all in memory at once.

    Args:
        source: The fp32 bundle and the samples it is run on.
        layers: The layers wanted of each graph; None: all of its linear layers.
        grams: Whether Gram matrices are wanted.
        progress: Called with a line per group of layers.

    Raises:
        QuantizationError: As `Calibrator.groups`.
    """
    calibrator = Calibrator(source, progress)
    found: dict[ComponentName, Group] = {}
    for component, wanted in layers.items():
        found[component] = {}
        for group in calibrator.groups(component, grams=grams, layers=wanted):
            found[component].update(group)
    return found


@dataclass(frozen=True)
class _Input:
    """A value that linear layers read.

    Attributes:
        value: Its name.
        num_inputs: K.
        layers: The weights' names.
    """

    value: str
    num_inputs: int
    layers: tuple[str, ...]

    def num_bytes(self, grams: bool) -> int:
        """Return about what one run of it and its sums take; a Gram stands beside the one that is added to it."""
        return 4 * self.num_inputs * (_ROWS_PER_RUN + (2 * self.num_inputs if grams else 0))

    def statistics(self, sums: _Sums) -> Group:
        """Return the statistics of every layer that reads it."""
        return dict.fromkeys(self.layers, sums.statistics(self.layers[0]))


class _Sums:
    """What has been seen of one input so far.

    Args:
        num_inputs: K.
        grams: Whether x x^T is summed, in float32: a sum of n terms is off by n * 6e-8 of itself at the worst.
    """

    def __init__(self, num_inputs: int, grams: bool) -> None:
        self._num_rows = 0
        self._peaks = np.zeros(num_inputs, np.float32)
        self._gram = np.zeros((num_inputs, num_inputs), np.float32) if grams else None

    def add(self, array: NDArray[np.float32]) -> None:
        """Count the rows [..., K] of one run."""
        rows = array.reshape(-1, len(self._peaks))
        self._num_rows += len(rows)
        np.maximum(self._peaks, np.abs(rows).max(axis=0, initial=0), out=self._peaks)
        if self._gram is not None:
            self._gram += rows.T @ rows

    def statistics(self, layer: str) -> InputStatistics:
        """Return the statistics, in the sums' own memory: nothing can be added afterwards.

        Raises:
            QuantizationError: No row was seen, or one with infinite numbers or none.
        """
        if not self._num_rows or not np.isfinite(self._peaks).all():
            what = "inputs that are not finite" if self._num_rows else "no input"
            raise QuantizationError(f"{layer} meets {what} on the samples, so it cannot be calibrated; look at them")
        if self._gram is not None:
            self._gram /= np.float32(self._num_rows)
        return InputStatistics(self._num_rows, self._peaks, self._gram)


def _collect(runs: Iterable[Mapping[str, NDArray[np.float32]]], group: Sequence[_Input], grams: bool) -> Group:
    """Return the statistics of a group from what its inputs were in each run."""
    sums = {each.value: _Sums(each.num_inputs, grams) for each in group}
    for watched in runs:
        for name, array in watched.items():
            sums[name].add(array)
    return {layer: found for each in group for layer, found in each.statistics(sums[each.value]).items()}


def _inputs_of(graph: ir.Graph, component: ComponentName, layers: Collection[str] | None) -> list[_Input]:
    """Return what the wanted layers read, in the order in which the graph computes it."""
    linears = [linear for linear in find_linears(graph) if layers is None or linear.name in layers]
    missing = set(layers or ()) - {linear.name for linear in linears}
    if missing or not linears:
        what = f"named {', '.join(sorted(missing))}" if missing else "at all"
        raise QuantizationError(f"{component}: the graph has no linear layer {what}, so there is nothing to calibrate")
    readers: dict[ir.Value, dict[str, Linear]] = {}
    for linear in linears:
        readers.setdefault(linear.input, {})[linear.name] = linear
    if len({linear.name for linear in linears}) < sum(map(len, readers.values())):
        raise QuantizationError(f"{component}: a weight meets two inputs, which calibration cannot tell apart")
    places = {node: at for at, node in enumerate(graph)}
    ordered = sorted(readers, key=lambda value: -1 if (node := value.producer()) is None else places[node])
    return [
        _Input(str(value.name), next(iter(readers[value].values())).num_inputs, tuple(readers[value]))
        for value in ordered
    ]


def _grouped(inputs: Sequence[_Input], grams: bool) -> list[list[_Input]]:
    """Return inputs in groups of at most `MOST_BYTES`, none of them empty."""
    groups: list[list[_Input]] = [[]]
    for each in inputs:
        if groups[-1] and sum(one.num_bytes(grams) for one in [*groups[-1], each]) > MOST_BYTES:
            groups.append([])
        groups[-1].append(each)
    return groups
