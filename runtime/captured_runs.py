"""Which runs of a decoder are captured on a device, and what of its memory they hold."""

from __future__ import annotations

import math

import numpy as np

from bundle import tensors
from bundle.manifest import Component, Manifest, RunPhase
from runtime.cache_shape import CacheShape

PROMPT_TOKENS = (32, 64, 128, 256, 512)
"""Of captured runs of a prompt. Each is twice the one before, so that half of what is run is wanted. Beyond them it is
no longer the launching of operators that takes the time."""
PROMPT_SLOTS = 32
"""Slots for which prompts are captured; in those behind them runs are launched singly, that a server of hundreds of
slots starts in seconds. A prompt sits behind the answers that are being made, so late slots are rare."""
HOST_INPUTS = frozenset({tensors.TOTAL_SEQUENCE_LENGTH})
"""That a graph reads while its kernels are launched."""

_PHASES: tuple[RunPhase, RunPhase] = "prompt", "step"


def is_of_device_form(component: Component) -> bool:
    """Return whether a decoder is of the form that leaves nothing to be computed on the host during a run."""
    return any(spec.name == tensors.TOTAL_SEQUENCE_LENGTH for spec in component.inputs)


def captured_bytes(manifest: Manifest, shape: CacheShape) -> int:
    """Return what inputs and outputs of captured runs take of a device's memory; 0 of a decoder that has none.

    What a run holds beside them lies in the session's arena, which all runs share.

    Args:
        manifest: Of the bundle.
        shape: Of its cache.
    """
    if manifest.decoder is None:
        return 0
    prompt, step = (manifest.components[manifest.graph("decoder", phase)] for phase in _PHASES)
    if not is_of_device_form(step):
        return 0
    logits = shape.num_slots * manifest.decoder.vocab_size * np.dtype(np.float32).itemsize
    steps = sum(_bytes_of_run(step, size, 1) for size in range(1, shape.num_slots + 1))
    lengths = [each for each in PROMPT_TOKENS if each <= shape.capacity_tokens]
    prompts = sum(_bytes_of_run(prompt, 1, length) for length in lengths)
    are_padded = all(state.kind == "rows" for state in manifest.states)
    return logits + steps + (min(shape.num_slots, PROMPT_SLOTS) * prompts if are_padded else 0)


def _bytes_of_run(component: Component, num_runs: int, num_tokens: int) -> int:
    """Return what lies on the device of a run that wants one row of logits a sequence, the logits aside."""
    sizes = {"B": num_runs, "T": num_tokens, "N": 1}
    ids = [spec for spec in component.optional_outputs if spec.name == tensors.GREEDY_IDS]
    given = [spec for spec in component.inputs if spec.name not in HOST_INPUTS]
    shapes = [
        (spec, [sizes.get(each, 1) if isinstance(each, str) else each for each in spec.shape])
        for spec in (*given, *ids)
    ]
    return sum(math.prod(shape) * np.dtype(spec.dtype).itemsize for spec, shape in shapes)
