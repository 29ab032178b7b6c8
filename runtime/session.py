"""A graph of a bundle, opened and found to be what the manifest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle import tensors
from bundle.directory import Bundle
from bundle.errors import SignatureError
from bundle.manifest import Component, ComponentName, Segment, TensorSpec
from bundle.states import State
from runtime.fixed_run import CapturedGraph, can_be_captured
from runtime.graph import Array, Graph, Port
from runtime.settings import RuntimeSettings
from runtime.tensorrt.engine_graph import EngineGraph
from runtime.tensorrt.in_place import run_in_place
from runtime.tensorrt.opening import fixed, try_engine, with_rows
from runtime.tensorrt.provider import plan_of


class Session:
    """One graph of a bundle.

    Args:
        bundle: Whose graph it is.
        part: The graph's name in the manifest, or a segment of the decoder.
        settings: Provider and threads.

    Attributes:
        component: The graph's entry in the manifest.
        graph: As ONNX Runtime, or a TensorRT engine of it, opened it.
        states: What it takes and gives back.

    Raises:
        MachineError: ONNX Runtime, its provider, an operator or memory is missing.
        BundleFileError: The file is not a graph.
        SignatureError: Inputs or outputs differ from the manifest's.
    """

    def __init__(self, bundle: Bundle, part: ComponentName | Segment, settings: RuntimeSettings) -> None:
        self.component = part if isinstance(part, Segment) else bundle.manifest.components[part]
        self.path = bundle.path(self.component.file)
        self.states = states = bundle.manifest.states_of(self.component)
        taken, given = _taken(states), _given(states)
        self._captured: CapturedGraph | None = None
        self._in_place: dict[str, str] = {}
        self.graph: Graph | EngineGraph
        if not isinstance(part, Segment) and (engine := try_engine(bundle, part, settings)) is not None:
            self.graph = engine
            self.component = self.component.model_copy(update={"optional_inputs": (), "optional_outputs": ()})
            taken, given = (with_rows(specs, bundle, settings) for specs in (taken, given))
        else:
            plan = None if isinstance(part, Segment) else plan_of(bundle, part, settings)
            if plan is not None:
                taken, given = (fixed(specs, plan.fixed_sizes) for specs in (taken, given))
                self._in_place = {each.input: each.output for each in states if each.kind == "rows" and each.output}
            captures = plan is None and _runs_on_device(self.component)
            self.graph = graph = Graph(self.path, settings, captures=captures, plan=plan)
            is_fixed = _takes_bytes(self.component) and can_be_captured(graph)
            self._captured = CapturedGraph(graph) if is_fixed else None
        check_signature(self.path, "input", [*self.component.inputs, *taken], self.graph.inputs)
        check_signature(self.path, "optional input", self.component.optional_inputs, self.graph.optional_inputs)
        outputs = [*self.component.outputs, *self.component.optional_outputs, *given]
        check_signature(self.path, "output", outputs, self.graph.outputs)
        self._own_outputs = [spec.name for spec in (*self.component.outputs, *_given(states))]
        self._optional_outputs = frozenset(spec.name for spec in self.component.optional_outputs)

    @property
    def output(self) -> str:
        """The name of the first output."""
        return self.component.outputs[0].name

    @property
    def is_captured(self) -> bool:
        """True where every number of images has a run of its own, which is made when it first occurs."""
        return self._captured is not None

    def run(self, feeds: Mapping[str, Array], optional: Sequence[str] = ()) -> dict[str, Array]:
        """Return every output by name, of the optional ones those that are asked for; the arrays are new.

        Raises:
            SignatureError: An optional output that the graph does not have.
            MachineError: The run failed.
        """
        self.check_optional(optional)
        if self._captured is not None and not optional:
            return self._captured.run(feeds, self._own_outputs)
        if self._in_place and isinstance(self.graph, Graph):
            return run_in_place(self.graph, feeds, self._in_place)
        return self.graph.run(feeds, [*self._own_outputs, *optional] if self._optional_outputs else None)

    def check_optional(self, outputs: Sequence[str]) -> None:
        """Check that the graph has optional outputs of these names.

        Raises:
            SignatureError: It has not.
        """
        check_optional(self.path, self.component, outputs)


def check_optional(path: Path, component: Component, outputs: Sequence[str]) -> None:
    """Check that a graph has optional outputs of these names.

    Raises:
        SignatureError: It has not.
    """
    known = {spec.name for spec in component.optional_outputs}
    if unknown := set(outputs) - known:
        raise SignatureError(
            f"{path} has no optional output {', '.join(sorted(unknown))}, only {', '.join(sorted(known)) or 'none'}"
        )


def _runs_on_device(component: Component) -> bool:
    """Return whether a graph computes nothing on the host during a run, as those made for CUDA do."""
    return _takes_bytes(component) or any(spec.name == tensors.TOTAL_SEQUENCE_LENGTH for spec in component.inputs)


def _takes_bytes(component: Component) -> bool:
    """Return whether a vision encoder normalises pixels itself, as those made for CUDA do."""
    return any(spec.dtype == "uint8" for spec in component.inputs)


def _taken(states: Sequence[State]) -> list[TensorSpec]:
    return [TensorSpec(name=state.input, dtype=state.dtype, shape=state.shape) for state in states]


def _given(states: Sequence[State]) -> list[TensorSpec]:
    return [TensorSpec(name=state.output, dtype=state.dtype, shape=state.shape) for state in states if state.output]


def check_signature(path: Path, side: str, expected: Sequence[TensorSpec], found: Sequence[Port]) -> None:
    """Check that a graph's inputs or outputs are the manifest's.

    Raises:
        SignatureError: They are not.
    """
    found_by_name = {port.name: port for port in found}
    if set(found_by_name) != {spec.name for spec in expected}:
        raise SignatureError(
            f"{path}: {side}s are {sorted(found_by_name)}, the manifest says {sorted(spec.name for spec in expected)}. "
            "Export the checkpoint again."
        )
    for spec in expected:
        port = found_by_name[spec.name]
        if port.dtype != spec.dtype or not _is_same_shape(spec.shape, port.shape):
            raise SignatureError(
                f"{path}: {side} {spec.name} is {port.dtype} {list(port.shape)}, "
                f"the manifest says {spec.dtype} {list(spec.shape)}. Export the checkpoint again."
            )


def _is_same_shape(expected: Sequence[int | str], found: Sequence[int | str | None]) -> bool:
    """Sizes must agree; a free axis must be free in both, whatever its name."""
    if len(expected) != len(found):
        return False
    return all(
        wanted == actual if isinstance(wanted, int) else not isinstance(actual, int)
        for wanted, actual in zip(expected, found, strict=True)
    )
