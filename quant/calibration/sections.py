"""A graph run section by section, to see values inside it without ever holding all of it.

What a section reads of the sections before it is kept per sample (the residual stream, mostly), so that however many
sections there are, every node runs once per sample:

    feeds ──┬────────────────┬────────────────┐
            section 0 ─ carried ─ section 1 ─ carried ─ section 2
              └ watched         └ watched         └ watched
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import PocketVLMError, QuantizationError
from graphs.store import open_graph
from runtime.graph import Graph
from runtime.settings import RuntimeSettings

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Section:
    """Some nodes of a graph, one after the other.

    Attributes:
        watched: Names of the values to be seen, all of them computed or read here.
        carried: Names of the values computed so far that later sections read.
    """

    watched: tuple[str, ...]
    carried: tuple[str, ...]


def cut(graph: ir.Graph, watched: Sequence[Sequence[str]]) -> list[Section]:
    """Return one section per group of watched values.

    Args:
        graph: Its nodes stand in an order in which they can run.
        watched: Names of values by group, in the order in which the graph computes them.
    """
    places = {node: at for at, node in enumerate(graph)}
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    wanted = [[values[name] for name in group] for group in watched]
    ends = [1 + max((_place(value, places) for value in group), default=-1) for group in wanted]
    needed = _ancestors([value for group in wanted for value in group]) & _descendants(graph.inputs)
    return [
        Section(tuple(group), tuple(_read_across(needed, places, end) if at + 1 < len(watched) else ()))
        for at, (group, end) in enumerate(zip(watched, ends, strict=True))
    ]


def _place(value: ir.Value, places: Mapping[ir.Node, int]) -> int:
    """Return where a value is computed, -1 for an input of the graph."""
    producer = value.producer()
    return -1 if producer is None else places[producer]


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Return the nodes that must run for these values."""
    found: set[ir.Node] = set()
    left = [producer for value in values if (producer := value.producer()) is not None]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(source for value in node.inputs if value is not None and (source := value.producer()))
    return found


def _descendants(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Return the nodes whose results depend on these values; all others only turn weights, and run in each section."""
    found: set[ir.Node] = set()
    left = list(values)
    while left:
        for user in left.pop().consumers():
            if user not in found:
                found.add(user)
                left.extend(user.outputs)
    return found


def _read_across(needed: set[ir.Node], places: Mapping[ir.Node, int], end: int) -> Iterator[str]:
    """Yield the values that nodes before `end` compute and needed nodes from there on read."""
    for node, place in places.items():
        if node not in needed or place >= end:
            continue
        for value in node.outputs:
            if any(user in needed and places[user] >= end for user in value.consumers()):
                yield str(value.name)


class SectionedGraph:
    """A graph of a bundle and samples that move through it a section at a time.

    Args:
        path: The `.onnx` file; its weights are mapped where they lie.
        samples: What the graph is fed, by sample; at least one.
        settings: Provider and threads.
    """

    def __init__(self, path: Path, samples: Sequence[Feeds], settings: RuntimeSettings) -> None:
        self._path = path
        self._samples = samples
        self._settings = settings
        self._carried: list[dict[str, Array]] = [{} for _ in samples]

    @property
    def num_samples(self) -> int:
        """Return how many runs a section takes."""
        return len(self._samples)

    def run(self, section: Section) -> Iterator[dict[str, Array]]:
        """Yield the watched values of each sample; to be called with each section of `cut` in its order.

        Raises:
            QuantizationError: ONNX Runtime cannot run the section.
        """
        computed = [name for name in dict.fromkeys(section.watched + section.carried) if not self._is_known(name)]
        session = self._session(computed) if computed else None
        for at, feeds in enumerate(self._samples):
            known = {**feeds, **self._carried[at]}
            if session is not None:
                known.update(self._run(session, known, at))
            self._carried[at] = {name: known[name] for name in section.carried}
            yield {name: known[name] for name in section.watched}

    def _is_known(self, name: str) -> bool:
        return name in self._samples[0] or name in self._carried[0]

    def _session(self, outputs: Sequence[str]) -> Graph:
        """Return what computes the outputs from the carried values; it reads no other weights than theirs."""
        model = open_graph(self._path)
        values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        for name, array in self._carried[0].items():
            values[name].type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            values[name].shape = ir.Shape([None] * array.ndim)
        sources = [*model.graph.inputs, *(values[name] for name in self._carried[0])]
        section = ir.convenience.extract(model.graph, sources, outputs)
        proto = ir.to_proto(ir.Model(section, ir_version=model.ir_version))
        return open_part(proto.SerializeToString(), self._path.parent, self._settings)

    def _run(self, session: Graph, known: Feeds, at: int) -> dict[str, Array]:
        try:
            return session.run({port.name: known[port.name] for port in session.inputs})
        except PocketVLMError as error:
            raise QuantizationError(f"{self._path.name} cannot run sample {at}: {error}") from error


def open_part(serialized: bytes, folder: Path, settings: RuntimeSettings) -> Graph:
    """Return a graph in memory, opened, whose weights lie in the files of `folder`.

    Raises:
        QuantizationError: ONNX Runtime cannot load it.
    """
    try:
        return Graph(serialized, settings, weights_folder=folder)
    except PocketVLMError as error:
        raise QuantizationError(f"{folder}: a part of its graph cannot be loaded: {error}") from error
