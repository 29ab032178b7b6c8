"""The token graphs of a bundle over a cache of its own: ids in, logits out, rows written in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from bundle import tensors
from bundle.cache_scales import CACHE_SCALES, load_cache_scales
from bundle.dims import DecoderDims
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, SignatureError
from bundle.manifest import Component, ComponentName, RunPhase
from bundle.states import State
from runtime.cache_shape import CacheShape
from runtime.captured_runs import PROMPT_SLOTS, PROMPT_TOKENS
from runtime.device.steps import DeviceSteps, captured_tokens, has_greedy_ids, runs_on_device
from runtime.feeds import Embeds, Int64, Step, TokenBatch, TokenRun, check_inputs, feeds_of
from runtime.fixed_run import FixedRun
from runtime.graph import Array
from runtime.inputs import Binding, InputBuffers
from runtime.session import Session
from runtime.settings import RuntimeSettings
from runtime.states import StateBuffers
from runtime.step_logits import Logits as Logits
from runtime.step_logits import StepLogits

RANKED = (tensors.QUERIES, tensors.KEYS)
"""What a segment gives of its last layer, beside hidden states, for a choice to be made by."""
_MOST_BINDINGS = 64
"""Kept at once. A decode batch begins at the first slot, so there are about as many as slots; each is a list of
addresses."""


class TokenGraphs:
    """The graphs that turn token ids into logits, opened and not yet bound to a cache.

    Args:
        bundle: A vision-language bundle.
        settings: Provider and threads.

    Attributes:
        sessions: By the graph's name in the manifest.
        cache_scales: Of states of codes, by the name of their input.
        segments: The decoder's graph for prompts cut between layers; none where the bundle has no segments, or on a
            device.

    Raises:
        BundleError: A graph is missing, unusable, or not what the manifest says.
        MachineError: This machine cannot run one.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings) -> None:
        manifest = bundle.manifest
        if manifest.decoder is None or not manifest.states:
            raise BundleFormatError(f"{bundle.directory} has no decoder; it cannot answer questions")
        self.states = manifest.states
        is_coded = manifest.cache_scheme != "float"
        self.cache_scales = load_cache_scales(bundle.path(CACHE_SCALES), self.states) if is_coded else {}
        self._dims = manifest.decoder
        self._num_groups = manifest.num_length_groups
        names = {phase: manifest.graph("decoder", phase) for phase in get_args(RunPhase)}
        embed_name = manifest.graph("embed_tokens")
        # A table of which a step reads a few rows: they are looked up where ids come from, and go up with the step.
        on_host = settings.model_copy(update={"provider": "cpu"})
        self.sessions: dict[ComponentName, Session] = {
            embed_name: Session(bundle, embed_name, on_host),
            **{name: Session(bundle, name, settings) for name in dict.fromkeys(names.values())},
        }
        self._embed = self.sessions[embed_name]
        self._of_phase: dict[RunPhase, Session] = {phase: self.sessions[name] for phase, name in names.items()}
        for session in self._of_phase.values():
            check_inputs(session.component.inputs, str(session.path))
            _check_gives_logits(session, self._dims.vocab_size)
        _check_same_signature(*self._of_phase.values())
        parts = manifest.segments if settings.provider == "cpu" else ()
        self.segments = tuple(Session(bundle, part, settings) for part in parts)
        _check_segments(self.segments, self._dims)

    @property
    def num_length_groups(self) -> int:
        """G."""
        return self._num_groups

    @property
    def position_axes(self) -> tuple[int, ...]:
        """The sizes before [T] of a run's positions: none, or (3,) where a model turns by three axes."""
        spec = next(spec for spec in self._of_phase["step"].component.inputs if spec.name == tensors.POSITION_IDS)
        return tuple(size for size in spec.shape[:-2] if isinstance(size, int))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._dims.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest sequence that the checkpoint was made for."""
        return self._dims.max_positions

    def of_phase(self, phase: RunPhase) -> Session:
        """Return the decoder's graph for a phase."""
        return self._of_phase[phase]

    def embed(self, ids: Int64) -> Embeds:
        """Return [B, T, D] of ids [B, T]; the array is new."""
        embeds: Embeds = self.look_up(ids)[self._embed.output]
        return embeds

    def look_up(self, ids: Int64) -> dict[str, Array]:
        """Return all that tables hold of ids [B, T], by name; the arrays are new."""
        return self._embed.run({self._embed.component.inputs[0].name: ids})

    def embed_text(self, ids: Int64) -> Embeds:
        """Return [N, D] of the ids of a text [N], of none too; safe on any thread."""
        return self.embed(ids[None])[0] if len(ids) else np.zeros((0, self._dims.hidden_size), np.float32)

    def step(self, batch: TokenBatch, bound_rows: int | None = None) -> Step:
        """Return a batch with its embeddings, image features in their places; see `Step`."""
        return Step.of_tables(batch, self.look_up(batch.ids), bound_rows)

    def feeds(self, phase: RunPhase, step: Step) -> dict[str, Array]:
        """Return the inputs of a phase's decoder by name, states aside."""
        component = self._of_phase[phase].component
        return feeds_of((*component.inputs, *component.optional_inputs), step)


class Decoder:
    """Token graphs bound to a cache. A step over slots `first ... first + B - 1` writes their new rows in place.

    The caller says which phase a step is of: tokens of a prompt run through the graph for prompts however few they are,
    so that no answer depends on how a prompt was cut. B would be as good a reason to choose a graph (eight rows are
    many, too), but then an answer would depend on who shares its batch.

    Args:
        graphs: Opened.
        shape: Slots and their length.

    Attributes:
        states: The cache; whoever moves, copies or drops rows asks it.

    Raises:
        MachineError: The cache is larger than what the machine can promise.
    """

    def __init__(self, graphs: TokenGraphs, shape: CacheShape) -> None:
        self.graphs = graphs
        self.shape = shape
        step = graphs.of_phase("step")
        self.states = StateBuffers(graphs.states, shape, step.graph.device, graphs.cache_scales)
        self._on_device = self._device_steps(step) if runs_on_device(step) else None
        self._logits = np.empty((shape.num_slots, 1, graphs.vocab_size), np.float32)
        self._inputs = InputBuffers(step.graph.device)
        self._bindings: OrderedDict[tuple[Session, int, int, tuple[str, ...]], Binding] = OrderedDict()

    def _device_steps(self, step: Session) -> DeviceSteps:
        return DeviceSteps(self._bind_states, self.shape.num_slots, self.graphs.vocab_size, step.graph.device)

    def run(self, phase: RunPhase, first_slot: int, runs: Sequence[TokenRun]) -> Logits:
        """Run tokens of one sequence per slot and return their logits [B, N, V], valid until the next run.

        Args:
            phase: Whether the tokens are a prompt's or were sampled.
            first_slot: Of the first run; the others follow.
            runs: All of one length and with as many wanted logits.
        """
        return self._run(phase, first_slot, TokenBatch.of(runs))

    def _run(self, phase: RunPhase, first_slot: int, batch: TokenBatch) -> Logits:
        if self._on_device is None:
            return self._run_on_host((), phase, first_slot, batch)[0]
        logits: Logits = self._run_on_device(self._on_device, phase, first_slot, batch).output(tensors.LOGITS)
        return logits

    def step(self, phase: RunPhase, first_slot: int, runs: Sequence[TokenRun]) -> StepLogits:
        """Run as `run` does, one logit row wanted of each run, and leave the logits where they are until asked for."""
        return self.step_batch(phase, first_slot, TokenBatch.of(runs))

    def step_batch(self, phase: RunPhase, first_slot: int, batch: TokenBatch) -> StepLogits:
        """Run as `step` does what lies side by side already."""
        if self._on_device is None:
            return StepLogits.of(self._run(phase, first_slot, batch)[:, 0])
        done = self._run_on_device(self._on_device, phase, first_slot, batch)
        finds_ids = has_greedy_ids(self.graphs.of_phase(phase))
        greedy_ids = done.output(tensors.GREEDY_IDS)[:, 0] if finds_ids else None
        return StepLogits(lambda: done.output(tensors.LOGITS)[:, 0], greedy_ids)

    def _run_on_device(self, steps: DeviceSteps, phase: RunPhase, first_slot: int, batch: TokenBatch) -> FixedRun:
        padded, is_step = self._padded(batch, first_slot), batch.num_tokens == 1
        is_prompt = padded is not batch
        bound_rows = self.shape.capacity_tokens if is_step or is_prompt else None
        feeds = self.graphs.feeds(phase, self.graphs.step(padded, bound_rows))
        is_captured = is_prompt or (is_step and first_slot == 0)
        done = steps.run(self.graphs.of_phase(phase), first_slot, feeds, is_captured=is_captured)
        self.states.take_over(first_slot, batch.size)
        return done

    def _padded(self, batch: TokenBatch, slot: int) -> TokenBatch:
        """Return tokens of a prompt with as many behind them as make its run one that is captured."""
        if batch.num_tokens == 1 or batch.wanted.shape != (1, 1) or self.states.has_fixed:
            return batch
        room_rows = self.shape.capacity_tokens - int(batch.lengths.max())
        num_tokens = captured_tokens(batch.num_tokens, slot, room_rows)
        return batch if num_tokens is None else batch.padded(num_tokens)

    def run_with(
        self, optional: tuple[str, ...], phase: RunPhase, first_slot: int, runs: Sequence[TokenRun]
    ) -> tuple[Logits, dict[str, Array]]:
        """Run as `run` does, and return some of the graph's optional outputs as well, by name; those arrays are new.

        Raises:
            SignatureError: The graph has no such output.
        """
        self.graphs.of_phase(phase).check_optional(optional)
        return self._run_on_host(optional, phase, first_slot, TokenBatch.of(runs))

    def _run_on_host(
        self, optional: tuple[str, ...], phase: RunPhase, first_slot: int, batch: TokenBatch
    ) -> tuple[Logits, dict[str, Array]]:
        session = self.graphs.of_phase(phase)
        binding = self._binding(session, first_slot, batch.size, optional)
        for name, array in self.graphs.feeds(phase, self.graphs.step(batch)).items():
            self._inputs.bind(binding, name, array)
        for name in optional:  # anew: an output once made is written again, whatever its size is now
            binding.io.bind_output(name, "cpu")
        logits = self._bind_logits(binding, batch.size, batch.wanted.shape[1])
        in_part = len(optional) < len(session.component.optional_outputs)
        session.graph.run_bound(binding.io, session.graph.in_part if in_part else None)
        self.states.take_over(first_slot, batch.size)
        if logits is not None and not optional:
            return logits, {}
        *_, last = found = binding.io.get_outputs()
        asked = found[_num_given(session.states) : -1]
        return (
            last.numpy() if logits is None else logits,
            {name: value.numpy() for name, value in zip(optional, asked, strict=True)},
        )

    def run_segment(self, number: int, slot: int, run: TokenRun, optional: tuple[str, ...] = ()) -> dict[str, Array]:
        """Run tokens of one sequence through one segment and return its outputs by name; the arrays are new.

        Args:
            number: Of the segment.
            slot: Of the sequence.
            run: Behind the first segment, with the hidden states that the one before gave.
            optional: Outputs wanted beside those that are always there.
        """
        session = self.graphs.segments[number]
        session.check_optional(optional)
        binding = self._binding(session, slot, 1, optional)
        component = session.component
        feeds = feeds_of((*component.inputs, *component.optional_inputs), self._segment_step(run))
        for name, array in feeds.items():
            self._inputs.bind(binding, name, array)
        names = [*(spec.name for spec in component.outputs), *optional]
        for name in names:
            binding.io.bind_output(name, "cpu")
        in_part = len(optional) < len(component.optional_outputs)
        session.graph.run_bound(binding.io, session.graph.in_part if in_part else None)
        found = binding.io.get_outputs()[_num_given(session.states) :]
        return {name: value.numpy().copy() for name, value in zip(names, found, strict=True)}

    def _segment_step(self, run: TokenRun) -> Step:
        """Return a run alone, with the hidden states that it has in the place of embeddings."""
        return self.graphs.step(TokenBatch.of([run])) if run.embeds is None else Step.of([run], run.embeds[None])

    def warm_up(self, num_tokens: int) -> None:
        """Run a prompt and batches of steps, so that no request pays for the first run.

        Where runs are captured, steps of every size are and prompts of every length in every slot, on the thread that
        calls. What they write, tokens of sequences overwrite.
        """
        is_captured = self._on_device is not None and self.graphs.of_phase("step").graph.can_capture
        lengths = [each for each in PROMPT_TOKENS[::-1] if each <= self.shape.capacity_tokens]
        for slot in range(min(self.shape.num_slots, PROMPT_SLOTS) if is_captured else 1):
            for length in lengths if is_captured else [num_tokens]:
                self.run("prompt", slot, [self._blank(length)])
        for number, _ in enumerate(self.graphs.segments):
            blank = self._blank(num_tokens)
            self.run_segment(number, 0, replace(blank, embeds=self.graphs.embed(blank.ids[None])[0]))
        for size in range(self.shape.num_slots, 0, -1) if is_captured else {1, self.shape.num_slots}:
            self.run("step", 0, [self._blank(1)] * size)

    def _blank(self, num_tokens: int) -> TokenRun:
        position_shape = self.graphs.position_axes + (num_tokens,)
        lengths = [0] * self.graphs.num_length_groups
        return TokenRun(np.zeros(num_tokens, np.int64), np.zeros(position_shape, np.int64), lengths, [num_tokens - 1])

    def _bind_logits(self, binding: Binding, num_runs: int, num_wanted: int) -> Logits | None:
        """Bind the logits to the buffer that is kept for one row per slot; None where there are more."""
        if num_wanted != 1:
            binding.io.bind_output(tensors.LOGITS, "cpu")
            binding.places.pop(tensors.LOGITS, None)
            return None
        logits = self._logits[:num_runs]
        if tensors.LOGITS not in binding.places:
            place = logits.shape, logits.ctypes.data
            binding.io.bind_output(tensors.LOGITS, "cpu", 0, np.float32, *place)
            binding.places[tensors.LOGITS] = place
        return logits

    def _binding(self, session: Session, first_slot: int, size: int, optional: tuple[str, ...]) -> Binding:
        """Return a graph's binding to the states of a range of slots; optional outputs and logits follow per run."""
        key = session, first_slot, size, optional
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        binding = Binding(session.graph.binding())
        self._bind_states(binding.io, first_slot, size, session.states)
        self._bindings[key] = binding
        if len(self._bindings) > _MOST_BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def _bind_states(self, io: Any, first_slot: int, size: int, states: Sequence[State] | None = None) -> None:
        """Bind both ends of states of a range of slots, of all where none are given; memory has one end."""
        for state in self.states.states if states is None else states:
            io.bind_input(state.input, *self.states.place(state, first_slot, size))
            if state.output:
                io.bind_output(state.output, *self.states.place_after(state, first_slot, size))


def _num_given(states: Sequence[State]) -> int:
    """Return how many states a graph gives back."""
    return sum(bool(state.output) for state in states)


def _check_gives_logits(session: Session, vocab_size: int) -> None:
    found = {spec.name: spec for spec in session.component.outputs}
    spec = found.get(tensors.LOGITS)
    if list(found) != [tensors.LOGITS] or spec is None or (spec.dtype, spec.shape[-1]) != ("float32", vocab_size):
        said = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in found.values())
        raise SignatureError(
            f"{session.path} gives {said or 'nothing'}; a decoder gives {tensors.LOGITS} float32 [B, N, {vocab_size}] "
            "and its states. Export the checkpoint again."
        )


def _check_segments(segments: Sequence[Session], dims: DecoderDims) -> None:
    """Check that each segment but the last gives what the next one takes, and what a choice between them is made of.

    Raises:
        SignatureError: One does not.
    """
    for session in segments:
        check_inputs(session.component.inputs, str(session.path))
        if session is segments[-1]:
            _check_gives_logits(session, dims.vocab_size)
            continue
        component = session.component
        found = [spec.name for spec in component.outputs], {spec.name for spec in component.optional_outputs}
        if found[0] != [tensors.HIDDEN_STATES] or found[1] < set(RANKED) or _width(component) != dims.hidden_size:
            raise SignatureError(
                f"{session.path} gives {', '.join([*found[0], *sorted(found[1])])}; a segment gives "
                f"{tensors.HIDDEN_STATES} [B, T, {dims.hidden_size}] and, where asked, {', '.join(RANKED)}. Export the "
                "checkpoint again."
            )


def _width(component: Component) -> int | str:
    return component.outputs[0].shape[-1]


def _check_same_signature(first: Session, second: Session) -> None:
    if (first.component.inputs, first.component.outputs) != (second.component.inputs, second.component.outputs):
        raise SignatureError(
            f"{second.path} does not take and give what {first.path.name} does, so they cannot share a cache. "
            "Quantize the fp32 bundle again."
        )
