"""The sizes that an engine is built for: least, usual and most of every free axis, read off the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from bundle import tensors
from bundle.errors import SettingsError
from bundle.manifest import Component, Manifest, TensorSpec
from bundle.states import ROWS
from runtime.limits import Limits as Limits

Sizes = tuple[int, ...]
Profile = Mapping[str, tuple[Sizes, Sizes, Sizes]]
"""By input: shapes of the least, the usual and the largest run."""
_Range = tuple[int, int, int]
_USUAL_TOKENS = 128
_COLOURS = 3
"""Channels of an image, and of each frame of a group."""
_FEWEST_ROWS = 16
"""Of a cache: fewer hold no prompt."""


def check_limits(limits: Limits, manifest: Manifest) -> None:
    """Check limits against a model.

    Raises:
        SettingsError: A cache that the model has no positions for, or prompts longer than the cache.
    """
    if manifest.decoder is None:
        return
    longest = manifest.decoder.max_positions
    if not _FEWEST_ROWS <= limits.cache_rows <= longest:
        raise SettingsError(
            f"--cache-rows {limits.cache_rows}: {manifest.name} takes {_FEWEST_ROWS} to {longest}, its longest context"
        )
    if limits.max_prompt_tokens > limits.cache_rows:
        raise SettingsError(
            f"--max-prompt-tokens {limits.max_prompt_tokens} do not fit --cache-rows {limits.cache_rows}; lower the "
            "first or raise the second"
        )


def check_asked(manifest: Manifest, limits: Limits, asked: Collection[str]) -> None:
    """Check that what somebody asked for has a part in some engine.

    Args:
        manifest: Of a bundle.
        limits: As asked for.
        asked: Names of the fields of `limits` that somebody set.

    Raises:
        SettingsError: It has none, or there is a graph that no engine can run.
    """
    for field in asked:
        other = replace(limits, **{field: getattr(limits, field) + 1})
        if all(
            profiles_of(manifest, each, limits) == profiles_of(manifest, each, other)
            for each in manifest.components.values()
        ):
            raise SettingsError(
                f"--{field.replace('_', '-')} {getattr(limits, field)}: no graph of {manifest.name} has such a size; "
                "leave it out"
            )


def profiles_of(manifest: Manifest, component: Component, limits: Limits) -> list[Profile]:
    """Return the profiles of a graph's engine; a decoder has one for prompts and one for single tokens.

    Raises:
        SettingsError: No engine can run the graph, or it has a free axis that nothing here tells the sizes of.
    """
    _refuse_unbuilt(manifest, component)
    ranges: dict[str, _Range] = {
        "B": (1, 1, limits.max_batch),
        "I": (1, 1, limits.max_images),
        "N": (1, 1, 1),
        ROWS: (limits.cache_rows, limits.cache_rows, limits.cache_rows),
    }
    if limits.image_sizes_px is not None:
        ranges["height"], ranges["width"] = zip(*limits.image_sizes_px, strict=True)
    video = None if manifest.image_prompt is None else manifest.image_prompt.own_video
    if component.role == "vision_encoder":
        ranges["channels"] = (_COLOURS, _COLOURS, _COLOURS * (1 if video is None else video.num_frames))
    inputs = inputs_of(manifest, component)
    return [_profile(component, inputs, {**ranges, "T": tokens}) for tokens in _tokens(manifest, component, limits)]


def inputs_of(manifest: Manifest, component: Component) -> list[TensorSpec]:
    """Return what a graph takes, states behind the rest."""
    states = manifest.states_of(component)
    return [
        *component.inputs,
        *(TensorSpec(name=state.input, dtype=state.dtype, shape=state.shape) for state in states),
    ]


def _refuse_unbuilt(manifest: Manifest, component: Component) -> None:
    """Refuse by name what an engine could be built of and nothing could run.

    Raises:
        SettingsError: It is such a graph.
    """
    if memories := [state.input for state in manifest.states_of(component) if state.kind == "memory"]:
        raise SettingsError(
            f"{component.file}: {memories[0]} is memory of images, which is filled in a host's memory, where no engine "
            "reads; serve the bundle on ONNX Runtime's CPU"
        )
    if any(spec.name == tensors.SEEN_AROUND for spec in component.inputs):
        raise SettingsError(
            f"{component.file}: tokens of an image or a prompt that see one another run together, however many, "
            "and an engine has a longest run; serve the bundle on ONNX Runtime"
        )
    if any(spec.name == tensors.MEMORY_SEEN for spec in component.inputs):
        raise SettingsError(
            f"{component.file}: tokens of an answer see all of a prompt beyond their windows, which is built and "
            "measured on the CPU alone; serve the bundle on ONNX Runtime's CPU"
        )
    if any(spec.name == tensors.QUESTION_IDS for spec in component.inputs):
        raise SettingsError(
            f"{component.file} reads questions of any length beside images, and its runs on a device have one size "
            "each; serve the bundle on ONNX Runtime's CPU"
        )

    if any(spec.name == tensors.BOXES for spec in component.inputs):
        raise SettingsError(
            f"{component.file} reads any number of boxes beside images, and its runs on a device have one size each; "
            "serve the bundle on ONNX Runtime's CPU"
        )


def _tokens(manifest: Manifest, component: Component, limits: Limits) -> list[_Range]:
    """Return the ranges of T, one a profile."""
    if component.role == "text_encoder" and manifest.dual is not None:
        longest = manifest.dual.max_text_tokens
        return [(1, longest, longest) if manifest.dual.pads_to_max else _up_to(longest)]
    if component.role == "pair_encoder" and manifest.pairs is not None:
        return [_up_to(manifest.pairs.max_text_tokens)]
    prompts, one = _up_to(limits.max_prompt_tokens), (1, 1, 1)
    if component.role != "decoder":
        return [prompts]
    return [*([prompts] if component.runs("prompt") else []), *([one] if component.runs("step") else [])]


def _up_to(longest: int) -> _Range:
    return 1, min(_USUAL_TOKENS, longest), longest


def _profile(component: Component, inputs: Sequence[TensorSpec], ranges: Mapping[str, _Range]) -> Profile:
    unknown = {size for spec in inputs for size in spec.shape if isinstance(size, str) and size not in ranges}
    if unknown:
        raise SettingsError(
            f"{component.file} has free sizes {', '.join(sorted(unknown))}, of which engines know nothing; they know "
            f"{', '.join(sorted(ranges))}"
        )

    def sizes(spec: TensorSpec, at: int) -> Sizes:
        return tuple(ranges[size][at] if isinstance(size, str) else size for size in spec.shape)

    return {spec.name: (sizes(spec, 0), sizes(spec, 1), sizes(spec, 2)) for spec in inputs}
