"""The decoder's graph for prompts once more, cut between layers, so that image tokens can be dropped on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import Component, Segment, TensorSpec
from bundle.states import State
from export.config import DecoderConfig
from graphs.segments import cut_segment
from graphs.sharing import share_weights
from graphs.store import open_graph, save_graph, weight_bytes


def with_segments(config: DecoderConfig, cuts: Sequence[int]) -> DecoderConfig:
    """Return the sizes of a decoder whose layers between two cuts keep rows of their own number.

    Raises:
        UnsupportedConfigError: The cuts do not count up, or lie outside of the layers.
    """
    ends = [0, *cuts, config.num_layers]
    if any(first >= end for first, end in pairwise(ends)):
        raise UnsupportedConfigError(
            f"--decoder-segments {','.join(map(str, cuts))}: the decoder has the layers 0 to {config.num_layers - 1}; "
            f"give numbers from 1 to {config.num_layers - 1} that count up, each a layer before which to cut"
        )
    groups = [number for number, (first, end) in enumerate(pairwise(ends)) for _ in range(first, end)]
    return replace(config, layer_groups=tuple(groups))


def write_segments(
    folder: Path, decoder: Component, states: Sequence[State], config: DecoderConfig, say: Callable[[str], None]
) -> tuple[Segment, ...]:
    """Write the segments of a decoder beside it, their weights in its file, and return the manifest's entries.

    Args:
        folder: That the decoder was written into.
        decoder: The whole one.
        states: Of all its layers.
        config: Its groups of layers are the segments.
        say: Told of each.
    """
    planned = planned_segments(decoder, config)
    for segment in planned:
        model = open_graph(folder / decoder.file)
        cut_segment(model, segment, [state for state in states if state.group == segment.group])
        save_graph(model, folder / segment.file)
        say(f"wrote {segment.file}: layers {segment.first_layer} to {segment.end_layer - 1} for prompts")
    files = [decoder.file, *(segment.file for segment in planned)]
    saved = share_weights(folder, files)
    sizes = {segment.file: weight_bytes(open_graph(folder / segment.file)) for segment in planned}
    return tuple(
        segment.model_copy(update={"weight_bytes": sizes[segment.file] - saved.get(segment.file, 0)})
        for segment in planned
    )


def planned_segments(decoder: Component, config: DecoderConfig) -> tuple[Segment, ...]:
    """Return what the segments take and give; one for each length group."""
    groups = config.length_groups
    return tuple(
        _segment(decoder, config, group, groups.index(group), groups.index(group) + groups.count(group))
        for group in range(config.num_length_groups)
    )


def _segment(decoder: Component, config: DecoderConfig, group: int, first: int, end: int) -> Segment:
    is_last = end == config.num_layers
    hidden, queries, keys = (
        TensorSpec(name=name, dtype="float32", shape=("B", "T", size))
        for name, size in (
            (tensors.HIDDEN_STATES, config.hidden_size),
            (tensors.QUERIES, config.num_heads * config.head_size),
            (tensors.KEYS, config.num_kv_heads * config.head_size),
        )
    )
    return Segment(
        file=f"decoder_segment_{group}.onnx",
        scheme=decoder.scheme,
        inputs=tuple(spec for spec in decoder.inputs if is_last or spec.name != tensors.LOGITS_INDICES),
        outputs=decoder.outputs if is_last else (hidden,),
        optional_inputs=decoder.optional_inputs,
        optional_outputs=() if is_last else (queries, keys),
        weight_bytes=0,
        first_layer=first,
        end_layer=end,
        group=group,
    )
