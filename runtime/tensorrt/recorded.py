"""The run that was recorded at export: what is made for smaller runs cannot replay it, so no server loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bundle.directory import Bundle
from bundle.errors import SettingsError
from bundle.golden import GOLDEN, load_golden
from bundle.manifest import Component, ComponentName
from bundle.states import ROWS
from runtime.limits import Limits
from runtime.tensorrt.profiles import Profile, inputs_of

_OPTIONS = {
    "B": "--max-batch",
    "I": "--max-images",
    "T": "--max-prompt-tokens",
    ROWS: "--cache-rows",
    "height": "--max-image-side",
    "width": "--max-image-side",
}
"""By free size: the option of `pocketvlm compile` that bounds it."""


def check_recorded(bundle: Bundle, profiles: Mapping[ComponentName, Sequence[Profile]]) -> None:
    """Check that the widest profile of every graph takes its recorded run.

    Raises:
        SettingsError: One does not.
        BundleFileError: The recording is damaged.
    """
    for name, component in bundle.manifest.components.items():
        for tensor, axis, size, recorded in _recorded(bundle, component):
            most = profiles[name][0][tensor][2][axis]
            if recorded > most and size in _OPTIONS:
                raise SettingsError(
                    f"{_OPTIONS[size]} {most}: every load replays the run of {component.file} that was recorded at "
                    f"export, which has {recorded}; take {recorded} at least"
                )


def with_recorded_sizes(bundle: Bundle, component: Component, limits: Limits) -> Limits:
    """Return limits that the recorded run fits at least, which every load replays, however small somebody's are."""
    most: dict[str, int] = {}
    for *_, size, recorded in _recorded(bundle, component):
        most[size] = max(recorded, most.get(size, 1))
    return replace(
        limits,
        max_batch=max(limits.max_batch, most.get("B", 1)),
        max_prompt_tokens=max(limits.max_prompt_tokens, most.get("T", 1)),
        max_images=max(limits.max_images, most.get("I", 1)),
    )


def _recorded(bundle: Bundle, component: Component) -> Iterator[tuple[str, int, str, int]]:
    """Yield the free sizes of a graph's recorded run: input, axis, name and number; none of a graph for steps alone."""
    if GOLDEN not in bundle.manifest.files or (component.role == "decoder" and not component.runs("prompt")):
        return
    recordings = load_golden(bundle.path(GOLDEN))
    if component.role not in recordings:
        return
    inputs = recordings[component.role].inputs
    for spec in inputs_of(bundle.manifest, component):
        sizes = inputs[spec.name].shape if spec.name in inputs else ()
        for axis, (size, number) in enumerate(zip(spec.shape, sizes, strict=False)):
            if isinstance(size, str):
                yield spec.name, axis, size, number
