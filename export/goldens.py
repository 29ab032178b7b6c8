"""One small run of each freshly written graph, recorded into the bundle."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.directory import Bundle
from bundle.golden import Recording, canary_image, canary_token_ids, save_golden
from bundle.image import ImageSpec
from bundle.manifest import Role
from runtime.feeds import Step, TokenBatch, TokenRun, feeds_of
from runtime.graph import Graph
from runtime.settings import RuntimeSettings
from runtime.states import empty_states

_CANARY_TOKENS = 12
_CANARY_PAIRS = 4
_SEE_ONE_ANOTHER = range(3, 8)
"""Of its tokens, where a decoder's attention looks forward."""
_BOXES = np.array([[[0, 0, 0, 0], [0.1, 0.3, 0.6, 0.8]]], np.float32)
"""All of the image, and a part."""
_STATES_KEPT = 2
"""Of a decoder's recorded outputs: the first layer's keys and values tell a broken cache, and all of them are large."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Canary:
    """The inputs that a bundle's graphs are run on.

    Attributes:
        pixel_values: [1, 3, height, width] float32; None where no images are read.
        input_ids: [1, T] int64.
        question_ids: [1, Q] int64, for a vision encoder that reads a question.
    """

    pixel_values: Array | None
    input_ids: Array
    question_ids: Array

    @classmethod
    def make(
        cls, image: ImageSpec | None, vocab_size: int, end_token_ids: tuple[int, ...], question_vocab_size: int = 1
    ) -> Canary:
        """Return the canary of a model; the ids close with the first end token, where a text tower pools."""
        ids = canary_token_ids(vocab_size, _CANARY_TOKENS)
        if end_token_ids:
            ids[0, -1] = end_token_ids[0]
        pixels = None if image is None else image.preprocess([canary_image()]).groups[0][:1]
        return cls(pixels, ids, canary_token_ids(question_vocab_size, _CANARY_TOKENS))


def can_record() -> bool:
    """Return whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def record_goldens(bundle: Bundle, canary: Canary) -> None:
    """Run every graph once on the canary and write `golden.npz`."""
    ids = canary.input_ids
    known = {
        tensors.QUESTION_IDS: canary.question_ids,
        tensors.BOXES: _BOXES,
        tensors.INPUT_IDS: ids,
        tensors.ATTENTION_MASK: np.ones_like(ids),
        tensors.TOKEN_TYPE_IDS: (np.arange(ids.size) >= ids.size // 2).astype(np.int64)[None],
    }
    if bundle.manifest.decoder is not None:  # where the encoder has adapters, one of them tells more than none
        numbers = [at for at, each in enumerate(bundle.manifest.decoder.adapters, 1) if each.changes_vision]
        known[tensors.ADAPTERS] = np.array(numbers[-1:] or [0], np.int64)
    if canary.pixel_values is not None:
        pairs = bundle.manifest.pairs
        known[tensors.PIXEL_VALUES] = _moving(canary.pixel_values, 1 if pairs is None else pairs.num_frames)
    recordings: dict[Role, Recording] = {}
    for name, component in bundle.manifest.components.items():
        if component.role != "decoder":
            feeds = {spec.name: known[spec.name] for spec in component.inputs}
            feeds = _several(feeds) if component.role == "pair_encoder" else feeds
            recorded = _recorded(bundle, name, feeds)
            wanted = {spec.name: recorded.outputs[spec.name] for spec in component.outputs}
            recordings[component.role] = Recording(recorded.inputs, wanted)
    if any(component.role == "decoder" for component in bundle.manifest.components.values()):
        recordings["decoder"] = _first_step(bundle, canary.input_ids[0], recordings["embed_tokens"].outputs)
    save_golden(bundle.directory, recordings)


def _moving(pixels: Array, num_frames: int) -> Array:
    """Return an image [1, 3, height, width] as the frames of a video in which it moves to the right."""
    return np.concatenate([np.roll(pixels, 4 * frame, axis=3) for frame in range(num_frames)], axis=1)


def _several(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return a few pairs, of texts that differ: of one score alone, only its sign could be compared by an angle."""
    turned = [np.roll(feeds[tensors.INPUT_IDS], turn, axis=1) for turn in range(_CANARY_PAIRS)]
    repeated = {name: np.concatenate([array] * _CANARY_PAIRS) for name, array in feeds.items()}
    return {**repeated, tensors.INPUT_IDS: np.concatenate(turned)}


def _first_step(bundle: Bundle, ids: npt.NDArray[np.int64], found: Mapping[str, Array]) -> Recording:
    """Return the recording of a prompt on empty states just large enough, of whose tokens the last is wanted.

    Args:
        bundle: Whose decoder is run.
        ids: [T].
        found: What tables gave for them, by name.
    """
    manifest, num_tokens = bundle.manifest, len(ids)
    name = manifest.graph("decoder", "prompt")
    lengths = [0] * manifest.num_length_groups
    places = np.arange(num_tokens, dtype=np.int64)
    around = np.zeros((2, num_tokens), np.int64)
    around[1, _SEE_ONE_ANOTHER] = np.arange(len(_SEE_ONE_ANOTHER))[::-1]
    held = 0 if manifest.embedder is None else len(manifest.embedder.adapters)
    # where the first is none at all, another tells more
    last = max(held - 1, 0) if manifest.decoder is None else len(manifest.decoder.adapters)
    run = TokenRun(ids, places, lengths, [num_tokens - 1], around=around, adapter=last)
    feeds = feeds_of(manifest.components[name].inputs, Step.of_tables(TokenBatch.of([run]), found))
    recorded = _recorded(bundle, name, {**feeds, **empty_states(manifest.states, 1, num_tokens)})
    (given,) = manifest.components[name].outputs
    kept = [given.name, *(state.output for state in manifest.states[:_STATES_KEPT] if state.output)]
    return Recording(recorded.inputs, {output: recorded.outputs[output] for output in kept})


def _recorded(bundle: Bundle, name: str, feeds: Mapping[str, Array]) -> Recording:
    graph = Graph(bundle.graph_path(name), RuntimeSettings(), prepacks=False)
    return Recording(dict(feeds), graph.run(feeds))
