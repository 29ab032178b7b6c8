"""What a decoder's attentions write into the cache, seen while the bundle's own graph answers samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.states import State
from graphs.lowering.parallel_layers import ATTENTION, ROTARY
from graphs.store import CONTRIB, open_graph
from quant.calibration.feeds import FeedSource
from quant.calibration.sections import SectionedGraph, cut

Float32 = NDArray[np.float32]
_STATES = ((1, 3), (2, 4))
"""Inputs of a GroupQueryAttention: new keys and values, and the states that they are written into."""


@dataclass(frozen=True)
class Written:
    """What one state gets.

    Attributes:
        state: Of the manifest.
        value: Name of the value in the graph, [B, T, K*C].
        partners: [C] the channel with which each is turned by position; itself where it is not turned.
    """

    state: State
    value: str
    partners: NDArray[np.int64]

    def magnitudes(self, rows: Float32) -> Float32:
        """Return how large each number of rows [..., K*C] can become at any position: [n, K, C].

        Turning mixes two channels and keeps the length of the pair: a scale taken from the length holds at every
        position, one taken from the channels at those of the samples.
        """
        heads, channels = self.state.scale_shape
        numbers = rows.reshape(-1, heads, channels)
        is_turned = self.partners != np.arange(channels)
        lengths = np.hypot(numbers, numbers[..., self.partners])
        return np.where(is_turned, lengths, np.abs(numbers)).astype(np.float32)


class CacheSamples:
    """The rows that samples make a decoder write.

    Args:
        source: The fp32 bundle and the samples.

    Attributes:
        written: One per state.

    Raises:
        QuantizationError: No samples, or states that no attention of ours writes.
    """

    def __init__(self, source: FeedSource) -> None:
        name = source.bundle.manifest.graph("decoder")
        path = source.bundle.graph_path(name)
        graph = open_graph(path).graph
        self.written = written_by(graph, source.bundle.manifest.states)
        (self._section,) = cut(graph, [[each.value for each in self.written]])
        self._graph = SectionedGraph(path, source.of(name), source.settings)

    @property
    def num_samples(self) -> int:
        """Return how many runs there are."""
        return self._graph.num_samples

    def runs(self) -> Iterator[dict[str, Float32]]:
        """Yield what each sample writes, [1, T, K*C] by the name of the value."""
        yield from self._graph.run(self._section)


def written_by(graph: ir.Graph, states: Sequence[State]) -> list[Written]:
    """Return what a decoder as it was exported writes into each of its states.

    Raises:
        QuantizationError: Something other than GroupQueryAttention reads a state.
    """
    found: dict[str, Written] = {}
    by_input = {state.input: state for state in states}
    for node in graph:
        if (node.domain, node.op_type) == (CONTRIB, ATTENTION):
            for at, past_at in _STATES:
                value, past = node.inputs[at], node.inputs[past_at]
                if value is not None and past is not None and past.name in by_input:
                    state = by_input[past.name]
                    found[state.input] = Written(state, str(value.name), _partners(value, state.scale_shape[-1]))
    if lacking := [state.input for state in states if state.input not in found]:
        raise QuantizationError(
            f"{', '.join(lacking[:3])}: no {ATTENTION} of {graph.name} writes it, so it cannot hold codes. Leave "
            "--kv-cache out"
        )
    return [found[state.input] for state in states]


def _partners(value: ir.Value, channels: int) -> NDArray[np.int64]:
    partners = np.arange(channels)
    node = value.producer()
    if node is None or node.op_type != ROTARY:
        return partners
    turned = _integer(node, "rotary_embedding_dim") or channels
    if _integer(node, "interleaved"):
        partners[:turned] ^= 1
    else:
        partners[:turned] = np.roll(partners[:turned], turned // 2)
    return partners


def _integer(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else 0
