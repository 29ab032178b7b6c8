"""Rotary embeddings as configs describe them, and the frequencies that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import UnsupportedConfigError
from export.yarn import Yarn

_ROPE_SCALING: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_positions": "original_max_position_embeddings",
    },
    "yarn": {"factor": "factor"},
    "proportional": {},
}
"""Kinds of rotary scaling, each with its fields of `RopeConfig` and their keys in a config."""


_AS_DEFAULT = ("mrope", "dynamic")
"""Kinds with the default's frequencies: what older configs call a rotary embedding by three axes, and what changes them
behind `max_position_embeddings` alone, where no bundle goes (transformers, `_compute_dynamic_ntk_parameters`)."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding (Su et al., arXiv 2104.09864) and its scaling.

    Attributes:
        kind: "default", "linear", "llama3", "yarn", or "proportional": the first pairs of whole heads turn by the
            frequencies that they have where all do, and the others stand still (Gemma 4).
        theta: Base of the frequencies.
        factor: How much longer the context became; 1 for "default".
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.
        original_positions: llama3 only: the context before scaling.
        part: How much of a head turns, its first numbers; 1: all of them.
        is_interleaved: Pairs are neighbours, and not numbers of one place in the two halves of what turns (GLM).
        yarn: What "yarn" wants beside; None of the others.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_positions: float = 0.0
    part: float = 1.0
    is_interleaved: bool = False
    yarn: Yarn | None = None

    @classmethod
    def read(cls, raw: Mapping[str, Any], *, default_part: float | None = None) -> RopeConfig:
        """Return the rotary part of a text config; of two spellings the older counts, as in transformers 5.

        Args:
            raw: Text config.
            default_part: Of a head that turns, where the config leaves it out; None: the decoder turns whole heads.

        Raises:
            UnsupportedConfigError: A kind that is not built, or a part where heads are whole.
        """
        given: dict[str, Any] = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
        kind: Any = given.get("rope_type", given.get("type", "default"))
        kind = "default" if kind in _AS_DEFAULT else kind
        theta: Any = given.get("rope_theta", raw.get("rope_theta", 10_000.0))
        if not isinstance(theta, int | float) or not theta > 0:
            raise UnsupportedConfigError(f"rope_theta {theta!r}: wanted is a number above 0")
        if kind not in _ROPE_SCALING or any(isinstance(value, Mapping) for value in given.values()):
            raise UnsupportedConfigError(
                f"rope_parameters {given!r}: built are one set for all layers, of type {', '.join(_ROPE_SCALING)}"
            )
        if kind == "proportional":
            turned, factor = (float(given.get(key, 1.0)) for key in ("partial_rotary_factor", "factor"))
            return cls(kind, float(theta), factor, part=turned)
        whole = 1.0 if default_part is None else default_part
        part: Any = given.get("partial_rotary_factor", raw.get("partial_rotary_factor", whole))
        if default_part is None and part != 1.0:
            raise UnsupportedConfigError(f"partial_rotary_factor {part!r}: this decoder is built with 1 alone")
        scaling = _ROPE_SCALING[kind]
        missing = [key for key in scaling.values() if given.get(key) is None]
        if missing:
            raise UnsupportedConfigError(f"rope_parameters {given!r}: type {kind!r} wants {', '.join(missing)} as well")
        stated: dict[str, Any] = {field: float(given[key]) for field, key in scaling.items()}
        yarn = Yarn.read(given, raw, stated["factor"]) if kind == "yarn" else None
        return cls(kind, float(theta), part=float(part), yarn=yarn, **stated)

    @property
    def scale(self) -> float:
        """What cos and sin of every angle by which something turns are multiplied by."""
        return 1.0 if self.yarn is None else self.yarn.scale

    def scales(self, head_size: int) -> float | npt.NDArray[np.float32]:
        """Return that, of each pair [C/2] where some stand still, which nothing scales."""
        num_turning, num = self.turned_size(head_size) // 2, head_size // 2
        if self.scale == 1.0 or num_turning == num:
            return self.scale
        return np.where(np.arange(num) < num_turning, np.float32(self.scale), np.float32(1.0))

    def turned_size(self, head_size: int) -> int:
        """Return how many numbers of a head turn, the first of them.

        Raises:
            UnsupportedConfigError: They are no pairs, or more than there are.
        """
        size = int(head_size * self.part)
        if not 2 <= size <= head_size or size % 2 or head_size % 2:
            raise UnsupportedConfigError(
                f"partial_rotary_factor {self.part}: {size} of the {head_size} numbers of a head would turn; wanted is "
                "an even number of them, 2 at least"
            )
        return size

    def head_order(self, head_size: int) -> npt.NDArray[np.int64] | None:
        """Return [C] in which order a head's numbers stand for its two halves to be the pairs; None: as they are.

        Where a part turns, its pairs are number i and i + R/2 of the first R. Put i into the first half of the whole
        head and i + R/2 at its place in the second, and the rotation of whole heads turns them; the others fill up
        both halves, as pairs of frequency 0. Queries and keys in one order have the same products.
        """
        turned = self.turned_size(head_size)
        if self.kind == "proportional" or (turned == head_size and not self.is_interleaved):
            return None
        numbers = np.arange(turned)
        firsts, seconds = (numbers[::2], numbers[1::2]) if self.is_interleaved else np.split(numbers, 2)
        still = np.split(np.arange(turned, head_size), 2)
        return np.concatenate([firsts, still[0], seconds, still[1]])

    def inverse_frequencies(self, head_size: int) -> npt.NDArray[np.float32]:
        """Return [C/2] float32, radians per position of each pair of a head, in the order of `head_order`."""
        if self.kind == "proportional":
            num_turning = self.turned_size(head_size) // 2
            return np.where(np.arange(head_size // 2) < num_turning, self._frequencies(head_size), np.float32(0.0))
        turning = self._frequencies(self.turned_size(head_size))
        return np.pad(turning, (0, head_size // 2 - len(turning)))

    def _frequencies(self, head_size: int) -> npt.NDArray[np.float32]:
        """Return those of whole heads.

        "llama3" keeps short wavelengths, divides long ones by `factor`, and blends between (Llama 3.1 release,
        `apply_scaling`).
        """
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        plain: npt.NDArray[np.float32] = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "default":
            return plain
        if self.kind in ("linear", "proportional"):
            return (plain / np.float32(self.factor)).astype(np.float32)
        if self.yarn is not None:
            return self.yarn.blended(plain, self.theta, self.factor)
        wavelengths = 2 * math.pi / plain
        blend = (self.original_positions / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        kept = np.clip(blend, 0.0, 1.0)
        blended: npt.NDArray[np.float32] = (kept * plain + (1.0 - kept) * plain / self.factor).astype(np.float32)
        return blended
