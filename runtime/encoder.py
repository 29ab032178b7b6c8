"""An encoder of a bundle, run by the engine that is asked for: ONNX Runtime, OpenVINO, or the faster one here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from bundle.directory import Bundle
from bundle.errors import PocketVLMError
from bundle.golden import GOLDEN, Recording, load_golden, recording_of
from bundle.manifest import ComponentName, Role, TensorSpec
from runtime.canary import Replayable, check_canary, cosine
from runtime.graph import Array
from runtime.openvino_graph import OpenVinoGraph, has_openvino
from runtime.session import Session, check_optional, check_signature
from runtime.settings import RuntimeSettings
from runtime.turns import Quartiles, Turns, milliseconds_of

logger = logging.getLogger(__name__)

_ENCODERS: tuple[Role, ...] = ("vision_encoder", "text_encoder")

_TRIAL = Turns(warmup=1, repeats=7, budget_s=2.0)
"""Of both engines on the recorded run: a tower of half a second takes four seconds of a start."""
_MOST_TIME = 0.95
"""Of ONNX Runtime's that OpenVINO may take to be chosen: below it, what is gained exceeds what noise feigns."""
_MOST_FURTHER = 5e-4
"""From the fp32 parent, as 1 - cosine, that OpenVINO may be than ONNX Runtime: bfloat16 costs 2e-4, W8A8 1e-3 to 2e-3;
the gate of encoders allows 1e-2."""


class Encoder(Replayable, Protocol):
    """A vision or text encoder of a bundle, whoever runs it."""

    @property
    def output(self) -> str:
        """Return the name of the first output."""

    def run(self, feeds: Mapping[str, Array], optional: Sequence[str] = ()) -> dict[str, Array]:
        """Return every output by name, of the optional ones those that are asked for."""

    @property
    def is_captured(self) -> bool:
        """Return whether every number of images has a run of its own, which is made when it first occurs."""


class OpenVinoEncoder:
    """A vision or text encoder of a bundle, run by OpenVINO.

    Args:
        bundle: Whose graph it is.
        name: The graph's, in the manifest.
        settings: Threads.

    Attributes:
        component: The graph's entry in the manifest.
        graph: As OpenVINO opened it.

    Raises:
        MachineError: OpenVINO or memory is missing, or it cannot run the graph.
        BundleFileError: The file is not a graph.
        SignatureError: Inputs or outputs differ from the manifest's.
    """

    def __init__(self, bundle: Bundle, name: ComponentName, settings: RuntimeSettings) -> None:
        self.path = bundle.graph_path(name)
        self.component = bundle.manifest.components[name]
        self._settings = settings
        self.graph = self._opened(self.component.outputs)
        check_signature(self.path, "input", self.component.inputs, self.graph.inputs)
        check_signature(self.path, "optional input", self.component.optional_inputs, self.graph.optional_inputs)

    @property
    def output(self) -> str:
        """The name of the first output."""
        return self.component.outputs[0].name

    @property
    def is_captured(self) -> bool:
        """False: runs of any number of images are one to OpenVINO."""
        return False

    def run(self, feeds: Mapping[str, Array], optional: Sequence[str] = ()) -> dict[str, Array]:
        """Return every output by name, of the optional ones those that are asked for; the arrays are new.

        Raises:
            SignatureError: An optional output that the graph does not have.
            MachineError: The run failed.
        """
        check_optional(self.path, self.component, optional)
        graph = self._whole_graph if optional else self.graph
        return graph.run(feeds, [*(spec.name for spec in self.component.outputs), *optional])

    @cached_property
    def _whole_graph(self) -> OpenVinoGraph:
        """With the optional outputs, which OpenVINO computes wherever a graph has them: opened when first asked."""
        return self._opened((*self.component.outputs, *self.component.optional_outputs))

    def _opened(self, outputs: Sequence[TensorSpec]) -> OpenVinoGraph:
        is_exact = self.component.scheme == "fp32"  # whoever keeps float32 wants no other
        graph = OpenVinoGraph(self.path, self._settings, is_exact=is_exact, outputs=[spec.name for spec in outputs])
        check_signature(self.path, "output", outputs, graph.outputs)
        return graph


def open_encoder(bundle: Bundle, name: ComponentName, settings: RuntimeSettings) -> Encoder:
    """Return an encoder, opened by the engine that the settings ask for.

    "auto" takes OpenVINO where it is installed, passes the canary, comes about as near to the fp32 parent as ONNX
    Runtime, and takes less time for it on this machine, as measured here and now on the run recorded at export.

    Raises:
        MachineError: The engine, its provider, an operator or memory is missing.
        BundleFileError: The file is not a graph.
        SignatureError: Inputs or outputs differ from the manifest's.
    """
    if settings.encoder_runtime == "openvino" and settings.provider == "cpu":
        return OpenVinoEncoder(bundle, name, settings)
    usual = Session(bundle, name, settings)
    may_change = settings.encoder_runtime == "auto" and settings.provider == "cpu" and has_openvino()
    return _faster(bundle, name, settings, usual) if may_change else usual


def open_graph(bundle: Bundle, name: ComponentName, settings: RuntimeSettings) -> Encoder:
    """Return any graph of a bundle as it is served: an encoder by the engine that the settings ask for.

    Raises:
        As `open_encoder`.
    """
    is_encoder = bundle.manifest.components[name].role in _ENCODERS
    return open_encoder(bundle, name, settings) if is_encoder else Session(bundle, name, settings)


def _faster(bundle: Bundle, name: ComponentName, settings: RuntimeSettings, usual: Session) -> Encoder:
    """Return OpenVINO's encoder where it agrees with the usual one and is faster; else the usual one."""
    if GOLDEN not in bundle.manifest.files:
        logger.info("%s: no run was recorded to compare engines on; ONNX Runtime runs it", usual.path)
        return usual
    try:
        other = OpenVinoEncoder(bundle, name, settings)
        check_canary(bundle, {name: other})
        trial = _tried(usual, other, _recorded(bundle, usual))
    except PocketVLMError as error:
        logger.info("%s: ONNX Runtime runs it, for OpenVINO does not: %s", usual.path, error)
        return usual
    logger.info("%s: %s runs it; OpenVINO %s", usual.path, "OpenVINO" if trial.is_won else "ONNX Runtime", trial)
    return other if trial.is_won else usual


def _recorded(bundle: Bundle, encoder: Encoder) -> Recording:
    path = bundle.path(GOLDEN)
    return recording_of(encoder.component.role, load_golden(path), path)


@dataclass(frozen=True)
class Trial:
    """OpenVINO beside ONNX Runtime, on the run recorded of the fp32 parent.

    Attributes:
        distance: OpenVINO's, from what was recorded: 1 less the lowest cosine of the outputs.
        usual_distance: ONNX Runtime's: what the weights' scheme costs.
        time: OpenVINO's over ONNX Runtime's, within each turn.
    """

    distance: float
    usual_distance: float
    time: Quartiles

    @property
    def is_won(self) -> bool:
        """True where OpenVINO is about as near to the parent, and takes less time in three turns of four."""
        is_near = self.distance <= self.usual_distance + _MOST_FURTHER
        return is_near and self.time.median <= _MOST_TIME and self.time.high < 1

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"takes {self.time} of ONNX Runtime's time; 1 - cosine with the fp32 parent is {self.distance:.1e}, ONNX "
            f"Runtime's {self.usual_distance:.1e}"
        )


def _tried(usual: Encoder, other: Encoder, recording: Recording) -> Trial:
    """Return how OpenVINO's encoder compares with the usual one."""
    both = {"usual": usual, "other": other}
    works = {key: partial(milliseconds_of, partial(each.run, recording.inputs)) for key, each in both.items()}
    times_ms = _TRIAL.run(works)
    return Trial(
        distance=_distance(recording, other.run(recording.inputs)),
        usual_distance=_distance(recording, usual.run(recording.inputs)),
        time=Quartiles.of_ratios(times_ms["other"], times_ms["usual"]),
    )


def _distance(recording: Recording, found: Mapping[str, Array]) -> float:
    return max(1 - cosine(array, found[name]) for name, array in recording.outputs.items())
