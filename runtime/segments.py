"""The segments of a decoder as they run: a stretch of one prompt at a time, or all of them as one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundle import tensors
from bundle.errors import SignatureError
from runtime.decoder import RANKED, Decoder, Logits
from runtime.graph import Array
from runtime.segmented_prompt import SegmentedPrompt
from runtime.session import Session


class SegmentChain:
    """All segments as one graph: what the whole decoder was recorded with can be replayed on it.

    Args:
        sessions: Of the segments, in order.

    Attributes:
        path: Of the last one.
        component: The last one's entry in the manifest.
        inputs: Of all of them.
        optional_inputs: Of all of them.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = sessions
        self.path, self.component = sessions[-1].path, sessions[-1].component
        graphs = [session.graph for session in sessions]
        self.inputs = tuple({port.name: port for graph in graphs for port in graph.inputs}.values())
        self.optional_inputs = tuple({port.name: port for graph in graphs for port in graph.optional_inputs}.values())

    @property
    def graph(self) -> SegmentChain:
        """What declares the inputs."""
        return self

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return what all segments gave, logits among it."""
        given, found = dict(feeds), dict[str, Array]()
        for session in self._sessions:
            ports = (*session.graph.inputs, *session.graph.optional_inputs)
            found |= session.run({port.name: given[port.name] for port in ports if port.name in given})
            given[tensors.INPUTS_EMBEDS] = found.get(tensors.HIDDEN_STATES, given[tensors.INPUTS_EMBEDS])
        return found


def read_segments(decoder: Decoder, slot: int, prompt: SegmentedPrompt, most_tokens: int) -> Logits:
    """Run all of a prompt, segment by segment, and return the logits [V] of its last token."""
    while not prompt.is_read:
        logits = run_segment(decoder, slot, prompt, *prompt.next_chunk(most_tokens))
    if logits is None:
        raise SignatureError("the last segment of the decoder gave no logits. Export the checkpoint again.")
    return logits


def run_segment(decoder: Decoder, slot: int, prompt: SegmentedPrompt, start: int, end: int) -> Logits | None:
    """Run a stretch of a prompt through the segment that it is in; return the last token's logits [V] of the last."""
    wanted = () if prompt.is_last else RANKED
    found = decoder.run_segment(prompt.segment, slot, prompt.run(start, end), wanted)
    prompt.take(found, end - start)
    logits = found.get(tensors.LOGITS)
    return None if logits is None else logits[0, 0]
