"""The load-time check: every graph, on this machine, against what it computed at export."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bundle.cache_scales import CACHE_SCALES, load_cache_scales
from bundle.directory import Bundle
from bundle.errors import BundleFileError, GoldenError
from bundle.gates import canary_gate
from bundle.golden import GOLDEN, Recording, check, load_golden, recording_of
from bundle.manifest import Component, ComponentName, Manifest, Scheme
from bundle.states import State
from runtime.cache_codes import decode
from runtime.graph import Array, Port

_MOST_ALONG_A_FREE_AXIS = 1024
"""Sequences, tokens, images of a recorded run; 12 tokens are what export records."""

logger = logging.getLogger(__name__)

_MAX_RELATIVE = 1e-3
"""Of an fp32 graph's outputs, relative to their largest value: other kernels and thread counts reorder sums."""

_MIN_COSINE = 0.3
"""Of a quantized graph against its fp32 parent, where the manifest has no gate for it: wrong nibbles fall near 0. How
good a variant is, its gates say; this tells a broken kernel from a working one."""


class Ports(Protocol):
    """What a graph declares."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Return those without a value of their own."""

    @property
    def optional_inputs(self) -> tuple[Port, ...]:
        """Return those that have one."""


class Replayable(Protocol):
    """A graph of a bundle, whoever opened it."""

    @property
    def path(self) -> Path:
        """Return its file."""

    @property
    def component(self) -> Component:
        """Return its entry in the manifest."""

    @property
    def graph(self) -> Ports:
        """Return what it declares."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""


def check_canary(bundle: Bundle, sessions: Mapping[ComponentName, Replayable]) -> None:
    """Replay the recorded run of every graph.

    A bundle exported without a runtime holds no recording; that is logged.

    Raises:
        GoldenError: A graph computes something else here.
        BundleFileError: The recording lacks a graph's run.
    """
    if GOLDEN not in bundle.manifest.files:
        logger.warning("%s holds no %s: its graphs are not checked on this machine", bundle.directory, GOLDEN)
        return
    for name, recording, found in replayed(bundle, sessions.items()):
        component = bundle.manifest.components[name]
        scheme = component.scheme
        has_codes = component.role == "decoder" and bundle.manifest.cache_scheme != "float"
        if scheme == "fp32" and not has_codes:
            check(name, recording.outputs, found, max_relative=_MAX_RELATIVE)
        else:
            _check_quantized(name, scheme, _min_cosine(bundle.manifest, name), recording.outputs, found)


def replayed(
    bundle: Bundle, sessions: Iterable[tuple[ComponentName, Replayable]]
) -> Iterator[tuple[ComponentName, Recording, dict[str, Array]]]:
    """Yield each graph's name, its recorded run and what it gives on the same inputs here.

    Raises:
        BundleFileError: The recording is missing, damaged, or lacks a graph's run.
    """
    path = bundle.path(GOLDEN)
    recordings = load_golden(path)
    for name, session in sessions:
        states = bundle.manifest.states_of(session.component)
        recording = _with_rows(recording_of(session.component.role, recordings, path), session, states)
        _check_inputs(path, session, recording)
        yield name, recording, _as_numbers(bundle, recording, _cut(session.run(recording.inputs), recording, states))


def _with_rows(recording: Recording, session: Replayable, states: Sequence[State]) -> Recording:
    """Return a run whose cache is as long as a graph's that has one length: a TensorRT engine's."""
    sizes = {port.name: port.shape for port in session.graph.inputs}
    inputs = dict(recording.inputs)
    for state in states:
        is_known = state.kind == "rows" and state.input in sizes and state.input in inputs
        wanted = sizes[state.input][state.row_axis] if is_known else None
        missing = wanted - inputs[state.input].shape[state.row_axis] if isinstance(wanted, int) else 0
        if missing > 0:
            ends = [(0, missing if axis == state.row_axis else 0) for axis in range(len(state.shape))]
            inputs[state.input] = np.pad(inputs[state.input], ends)
    return Recording(inputs, recording.outputs)


def _cut(found: dict[str, Array], recording: Recording, states: Sequence[State]) -> dict[str, Array]:
    """Return outputs, states without the rows that a longer cache has."""
    cut = dict(found)
    for name in {state.output for state in states} & found.keys() & recording.outputs.keys():
        shape = recording.outputs[name].shape
        cut[name] = found[name][tuple(map(slice, shape))] if len(shape) == found[name].ndim else found[name]
    return cut


def _as_numbers(bundle: Bundle, recording: Recording, found: dict[str, Array]) -> dict[str, Array]:
    """Return a run's outputs with recorded states of codes as the numbers that they stand for."""
    coded = [state for state in bundle.manifest.states if state.scheme != "float" and state.output in recording.outputs]
    if not coded or not found.keys() & {state.output for state in coded}:
        return found
    scales = load_cache_scales(bundle.path(CACHE_SCALES), coded)
    numbers = {
        state.output: decode(found[state.output], np.expand_dims(scales[state.input], state.row_axis - 1), state.scheme)
        for state in coded
    }
    return {**found, **numbers}


def _check_inputs(path: Path, session: Replayable, recording: Recording) -> None:
    """Check that a recorded run is one of this graph, and a small one.

    Raises:
        BundleFileError: It is not.
    """
    ports = {port.name: port for port in (*session.graph.inputs, *session.graph.optional_inputs)}
    if lacking := {port.name for port in session.graph.inputs} - set(recording.inputs):
        raise BundleFileError(f"{path} records no {', '.join(sorted(lacking))}. Export the checkpoint again.")
    for name, array in recording.inputs.items():
        port = ports.get(name)
        if port is None or array.dtype.name != port.dtype or not _fits(array.shape, port.shape):
            raise BundleFileError(
                f"{path} records {name} of {array.dtype} {list(array.shape)}, which {session.path.name} does not take "
                "in a small run. Export the checkpoint again."
            )


def _fits(found: tuple[int, ...], declared: tuple[int | str | None, ...]) -> bool:
    return len(found) == len(declared) and all(
        size == wanted if isinstance(wanted, int) else size <= _MOST_ALONG_A_FREE_AXIS
        for size, wanted in zip(found, declared, strict=True)
    )


def _min_cosine(manifest: Manifest, component: ComponentName) -> float:
    """Return the limit that the variant was held to when it was made."""
    name = canary_gate(component)
    return next((gate.limit for gate in manifest.gates if gate.name == name), _MIN_COSINE)


def _check_quantized(
    name: str, scheme: Scheme, min_cosine: float, recorded: dict[str, Array], found: dict[str, Array]
) -> None:
    for output, expected in recorded.items():
        if output not in found or found[output].shape != expected.shape:
            raise GoldenError(f"{name}: output {output} was recorded as {list(expected.shape)}; this run gave another")
        found_cosine = cosine(expected, found[output])
        if not found_cosine >= min_cosine:
            raise GoldenError(
                f"{name}: output {output} of the {scheme} graph has cosine {found_cosine:.4f} with the fp32 parent's, "
                f"at least {min_cosine} is expected. A kernel is broken on this machine; try another provider."
            )


def cosine(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return the cosine of two arrays of one shape, each taken as one vector."""
    a = np.asarray(first, np.float64).ravel()
    b = np.asarray(second, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
