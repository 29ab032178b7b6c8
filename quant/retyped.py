"""What lies beside the graphs of a variant whose inputs or states are of other types than its parent's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle import tensors
from bundle.directory import Bundle
from bundle.golden import GOLDEN, Recording, canary_image, load_golden, save_golden
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.manifest import Component, Manifest, Role
from bundle.states import State
from runtime.feeds import Step, TokenRun, feeds_of
from runtime.graph import Array


def retype_inputs(parent: Bundle, variant: Manifest, folder: Path) -> None:
    """Write the preprocessing that gives bytes, and the recorded runs with inputs as the variant takes them.

    A graph that reads pairs takes the pixels that its parent's does: vision encoders alone normalise bytes themselves.
    Outputs stay those of the fp32 parent: a load compares with them.

    Args:
        parent: The fp32 bundle.
        variant: Its inputs are those wanted.
        folder: Of the variant.
    """
    components = {part.role: part for part in variant.components.values()}
    image: ImageSpec | None = None
    if "vision_encoder" in components:  # bytes, as docs/cuda-form.md says
        image = ImageSpec.read(parent.path(PREPROCESSOR)).model_copy(update={"normalised_in_graph": True})
        (folder / PREPROCESSOR).write_text(image.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if GOLDEN not in parent.manifest.files:
        return
    recordings: dict[Role, Recording] = {}
    for role, recording in load_golden(parent.path(GOLDEN)).items():
        component = components[_role(role, components)]
        recordings[component.role] = Recording(_inputs(component, variant, recording, image), recording.outputs)
    save_golden(folder, recordings)


def retype_states(parent: Bundle, variant: Manifest, folder: Path) -> None:
    """Write the recorded runs with states as the variant takes them; outputs stay those of the fp32 parent.

    A load compares with those, states of codes by the numbers that they stand for. Recorded states are empty.

    Args:
        parent: The fp32 bundle.
        variant: Its states are those wanted.
        folder: Of the variant.
    """
    if GOLDEN not in parent.manifest.files:
        return
    states = {state.input: state for state in variant.states}
    recordings: dict[Role, Recording] = {}
    components = {part.role: part for part in variant.components.values()}
    for name, recording in load_golden(parent.path(GOLDEN)).items():
        inputs = {key: _retyped(array, states.get(key)) for key, array in recording.inputs.items()}
        recordings[_role(name, components)] = Recording(inputs, recording.outputs)
    save_golden(folder, recordings)


def _retyped(array: Array, state: State | None) -> Array:
    """Return an input as a variant takes it, of which some are states."""
    if state is None:
        return array
    if state.scheme == "float":
        return array.astype(state.dtype)
    return np.zeros(state.sizes(array.shape[0], array.shape[state.row_axis]), state.dtype)


def _role(name: str, components: Mapping[Role, Component]) -> Role:
    return next(role for role in components if role == name)


def _inputs(component: Component, variant: Manifest, recording: Recording, image: ImageSpec | None) -> dict[str, Array]:
    """Return the inputs of a recorded run in the types and shapes of a component."""
    if component.role == "decoder":
        return _decoder_inputs(component, variant, recording)
    if image is not None and component.role == "vision_encoder":
        return {component.inputs[0].name: image.preprocess([canary_image()]).groups[0][:1]}
    return recording.inputs


def _decoder_inputs(component: Component, variant: Manifest, recording: Recording) -> dict[str, Array]:
    recorded = recording.inputs
    embeds = recorded[tensors.INPUTS_EMBEDS].astype(np.float16)
    run = TokenRun(
        ids=np.zeros(embeds.shape[1], np.int64),
        positions=recorded[tensors.POSITION_IDS][..., 0, :],
        lengths=recorded[tensors.PAST_LENGTHS][:, 0].tolist(),
        wanted=recorded[tensors.LOGITS_INDICES][0].tolist(),
    )
    states = {state.input: recorded[state.input].astype(state.dtype) for state in variant.states}
    return {**feeds_of(component.inputs, Step.of([run], embeds, recorded)), **states}
