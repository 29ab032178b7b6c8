"""What the fp32 graphs computed at export, kept to be computed again wherever the bundle is loaded.

`golden.npz` holds one small run of each role's graph under the keys `"{role}.in.{tensor}"` and
`"{role}.out.{tensor}"`. The inputs come from a canary: an image and ids made by integer arithmetic alone, the same
on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.array_file import read_arrays
from bundle.errors import BundleFileError, GoldenError
from bundle.json_file import printable
from bundle.manifest import Role

GOLDEN = "golden.npz"
_MOST_BYTES = 1 << 26
"""Of all arrays unpacked. The largest model that is exported (LLaVA 7B) takes 12 MB."""
_MOST_ARRAYS = 1 << 12
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Recording:
    """One run of one graph.

    Attributes:
        inputs: By tensor name.
        outputs: By tensor name; those that were kept.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Difference:
    """How far one array is from another.

    Attributes:
        absolute: Largest absolute difference of two elements.
        relative: `absolute` over the largest magnitude recorded; element by element it would mean nothing near zero.
    """

    absolute: float
    relative: float


def save_golden(directory: Path, recordings: Mapping[Role, Recording]) -> None:
    """Write `golden.npz` from recordings by role."""
    arrays: dict[str, Array] = {}
    for component, recording in recordings.items():
        arrays.update({f"{component}.in.{name}": array for name, array in recording.inputs.items()})
        arrays.update({f"{component}.out.{name}": array for name, array in recording.outputs.items()})
    with (directory / GOLDEN).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_golden(path: Path) -> dict[str, Recording]:
    """Return the recordings in a `golden.npz` by the role of the graph.

    Raises:
        BundleFileError: The file is missing, damaged, holds a key of another form, or more than a recording takes.
    """
    try:
        arrays = read_arrays(path, _MOST_ARRAYS, _MOST_BYTES)
    except Exception as error:  # numpy parses a header as Python, and lets out whatever comes of it
        raise BundleFileError(
            f"{path} is missing or damaged: {printable(str(error))}. Export the checkpoint again."
        ) from error
    recordings: dict[str, Recording] = {}
    for key, array in arrays.items():
        component, direction, name = _parts(key, path)
        recording = recordings.setdefault(component, Recording({}, {}))
        (recording.inputs if direction == "in" else recording.outputs)[name] = array
    return recordings


def recording_of(role: Role, recordings: Mapping[str, Recording], path: Path) -> Recording:
    """Return the run that the graphs of a role are held against.

    Raises:
        BundleFileError: It was not recorded.
    """
    if role not in recordings:
        raise BundleFileError(f"{path} holds no run of {role}. Export the checkpoint again.")
    return recordings[role]


def _parts(key: str, path: Path) -> tuple[str, str, str]:
    component, _, rest = key.partition(".")
    direction, _, name = rest.partition(".")
    if direction not in ("in", "out") or not component or not name:
        raise BundleFileError(f"{path} holds {key!r}; expected COMPONENT.in.TENSOR or COMPONENT.out.TENSOR")
    return component, direction, name


def compare(recorded: Array, found: Array) -> Difference:
    """Return the worst difference of two arrays of one shape; infinite where `found` holds a NaN or an infinity.

    Raises:
        GoldenError: The shapes differ.
    """
    if recorded.shape != found.shape:
        raise GoldenError(f"the recorded output has shape {recorded.shape}, this run's has {found.shape}")
    if recorded.size == 0:
        return Difference(0.0, 0.0)
    expected, got = recorded.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(got).all():
        return Difference(float("inf"), float("inf"))
    absolute = float(np.abs(expected - got).max())
    scale = float(np.abs(expected).max())
    relative = absolute / scale if scale > 0 else (0.0 if absolute == 0 else float("inf"))
    return Difference(absolute, relative)


def check(
    component: str, recorded: Mapping[str, Array], found: Mapping[str, Array], *, max_relative: float
) -> Difference:
    """Return the worst difference over a component's outputs.

    Args:
        component: Its name, for the message.
        recorded: Outputs by name, from `load_golden`.
        found: This run's outputs by name; more than were recorded is fine.
        max_relative: The limit on `Difference.relative` of each output.

    Raises:
        GoldenError: An output is missing, of another shape, or further off than the limit.
    """
    worst = Difference(0.0, 0.0)
    for name, expected in recorded.items():
        if name not in found:
            raise GoldenError(f"{component}: output {name} was recorded, but this run gave {sorted(found)}")
        difference = compare(expected, found[name])
        if not difference.relative <= max_relative:
            raise GoldenError(
                f"{component}: output {name} differs from the one recorded at export by {difference.absolute:.3g} "
                f"({difference.relative:.3g} of its largest value; at most {max_relative:.3g} is accepted). This "
                "device or this build of the runtime computes something else; try another provider or export again."
            )
        worst = max(worst, difference, key=lambda each: each.relative)
    return worst


def canary_image(width_px: int = 160, height_px: int = 112) -> Image.Image:
    """Return an RGB image with ramps, stripes and a dark block, so that every channel and place tells."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    red = x * 255 // max(width_px - 1, 1)
    green = y * 255 // max(height_px - 1, 1)
    blue = (x // 7 + y // 5) % 2 * 200 + 20
    pixels = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    pixels[height_px // 4 : height_px // 2, width_px // 2 : width_px * 3 // 4] = (12, 34, 56)
    return Image.fromarray(pixels)


def canary_token_ids(vocab_size: int, num_tokens: int) -> npt.NDArray[np.int64]:
    """Return [1, num_tokens] int64 ids spread over the vocabulary."""
    prime = 7919  # larger than any step that would repeat early, and prime to nearly every vocabulary size
    return (np.arange(1, num_tokens + 1, dtype=np.int64) * prime % vocab_size)[None]
