"""A Hugging Face config read into typed sizes; what is not built is refused here, by name and value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import UnsupportedConfigError
from export.tower_experts import TowerExperts
from export.yarn import Yarn

Raw = Mapping[str, Any]
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
class TowerConfig:
    """Sizes of a ViT or of a text tower.

    Attributes:
        hidden_size: Width.
        intermediate_size: Of the MLP.
        num_layers: Depth.
        num_heads: Attention heads.
        hidden_act: Of the MLP.
        layer_norm_eps: Of every LayerNorm.
        experts: In the place of some layers' MLPs.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: str
    layer_norm_eps: float
    experts: TowerExperts | None = None

    @classmethod
    def read(cls, raw: Raw, defaults: Raw) -> TowerConfig:
        """Return the tower of a config; `defaults` are transformers' own for keys that the file leaves out."""
        merged = {**defaults, **raw}
        tower = cls(
            hidden_size=merged["hidden_size"],
            intermediate_size=merged["intermediate_size"],
            num_layers=merged["num_hidden_layers"],
            num_heads=merged["num_attention_heads"],
            hidden_act=merged["hidden_act"],
            layer_norm_eps=merged["layer_norm_eps"],
            experts=TowerExperts.read(merged.get("moe"), merged["num_hidden_layers"]),
        )
        if tower.hidden_size % tower.num_heads:
            raise UnsupportedConfigError(
                f"hidden_size {tower.hidden_size} is not a multiple of num_attention_heads {tower.num_heads}"
            )
        return tower


@dataclass(frozen=True)
class VisionConfig:
    """A ViT over square images.

    Attributes:
        tower: Its layers.
        image_size_px: Side of the input.
        patch_size_px: Side of a patch.
        num_channels: Of the input.
    """

    tower: TowerConfig
    image_size_px: int
    patch_size_px: int
    num_channels: int

    @classmethod
    def read(cls, raw: Raw, defaults: Raw) -> VisionConfig:
        """Return the vision tower of a config."""
        merged = {**defaults, **raw}
        require(merged, [("num_channels", 3)])
        return cls(
            tower=TowerConfig.read(raw, defaults),
            image_size_px=_square("image_size", merged["image_size"]),
            patch_size_px=_square("patch_size", merged["patch_size"]),
            num_channels=merged["num_channels"],
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size_px // self.patch_size_px


def _square(key: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(sides) == 2 and sides[0] == sides[1] and isinstance(sides[0], int):
        return int(sides[0])
    raise UnsupportedConfigError(f"vision_config.{key} is {value!r}; only square images and patches are built")


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
    def read(cls, raw: Raw, *, default_part: float | None = None) -> RopeConfig:
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


@dataclass(frozen=True)
class ExpertsConfig:
    """The routed experts beside the shared one in every layer's MLP.

    Attributes:
        num: E.
        width: Hidden units of one expert.
        is_ternary: The checkpoint packs their weights as -1, 0 and 1 with a scale per matrix.
        per_token: Chosen for each token.
        is_normalised: What the chosen count for sums to 1; else each counts with its share among all.
        is_stacked: The checkpoint keeps matrices of all experts of a layer in one tensor.
        scale: That what the chosen make together is multiplied by.
    """

    num: int
    width: int
    is_ternary: bool
    per_token: int = 1
    is_normalised: bool = False
    is_stacked: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check that there are as many experts as are chosen.

        Raises:
            UnsupportedConfigError: There are not.
        """
        if not 1 <= self.per_token <= self.num:
            raise UnsupportedConfigError(f"{self.per_token} experts are chosen for each token, of {self.num}")

    @classmethod
    def read(cls, raw: Raw) -> ExpertsConfig:
        """Return the experts of a text config.

        Raises:
            UnsupportedConfigError: More than one expert a token, or weights of an unknown kind.
        """
        require(raw, [("num_experts_per_tok", 1)])
        missing = [key for key in ("num_experts", "expert_intermediate_size", "expert_weights") if key not in raw]
        if missing:
            raise UnsupportedConfigError(f"text_config lacks {', '.join(missing)}, which say what the experts are")
        kind = raw["expert_weights"]
        if kind not in ("ternary", "float"):
            raise UnsupportedConfigError(f"text_config.expert_weights {kind!r}; known: ternary, float")
        return cls(raw["num_experts"], raw["expert_intermediate_size"], kind == "ternary")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a Llama-shaped causal decoder.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        intermediate_size: Of the gated MLP.
        num_layers: L.
        num_heads: H.
        num_kv_heads: K.
        head_size: C; not always D / H.
        max_positions: Longest sequence that the checkpoint was made for.
        hidden_act: Of the gate.
        rms_norm_eps: Of every norm.
        rope: Rotary embedding.
        qkv_bias: On the query, key and value projections.
        out_bias: On the output projection.
        mlp_bias: On the three matrices of the MLP.
        experts: Beside each layer's MLP, which is then the shared expert; None: there are none.
        layer_groups: The length group of each layer, counted from 0: layers of different groups may keep different
            numbers of rows. None: all keep the same.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int
    hidden_act: str
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    experts: ExpertsConfig | None = None
    layer_groups: tuple[int, ...] | None = None

    @property
    def length_groups(self) -> tuple[int, ...]:
        """The length group of each layer."""
        return self.layer_groups or (0,) * self.num_layers

    @property
    def num_length_groups(self) -> int:
        """G."""
        return max(self.length_groups) + 1


def with_length_groups(config: DecoderConfig, num_groups: int) -> DecoderConfig:
    """Return a decoder whose layers stand in groups of neighbours, each of which keeps rows of its own number.

    Raises:
        UnsupportedConfigError: It has fewer layers.
    """
    if not 1 <= num_groups <= config.num_layers:
        raise UnsupportedConfigError(
            f"--length-groups {num_groups}: the decoder has {config.num_layers} layers, each of one group; give 1 to "
            f"{config.num_layers}"
        )
    return replace(config, layer_groups=tuple(at * num_groups // config.num_layers for at in range(config.num_layers)))


def read_sizes(merged: Raw, *, qkv_bias: bool, default_rotary_part: float | None = None) -> DecoderConfig:
    """Return the sizes in a text config that names them as Llama's does.

    Args:
        merged: With the defaults of its kind.
        qkv_bias: Queries, keys and values have biases.
        default_rotary_part: As `RopeConfig.read` takes it.

    Raises:
        UnsupportedConfigError: Heads that do not share keys evenly, or a rotary embedding that is not built.
    """
    num_heads = merged["num_attention_heads"]
    num_kv_heads = merged.get("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise UnsupportedConfigError(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    return DecoderConfig(
        vocab_size=merged["vocab_size"],
        hidden_size=merged["hidden_size"],
        intermediate_size=merged["intermediate_size"],
        num_layers=merged["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=merged.get("head_dim") or merged["hidden_size"] // num_heads,
        max_positions=merged["max_position_embeddings"],
        hidden_act=merged["hidden_act"],
        rms_norm_eps=merged["rms_norm_eps"],
        rope=RopeConfig.read(merged, default_part=default_rotary_part),
        qkv_bias=qkv_bias,
        out_bias=bool(merged.get("attention_bias", False)),
        mlp_bias=bool(merged.get("mlp_bias", False)),
    )


def sub_config(config: Raw, key: str) -> Raw:
    """Return a nested config.

    Raises:
        UnsupportedConfigError: It is absent or not an object.
    """
    nested = config.get(key)
    if not isinstance(nested, Mapping):
        raise UnsupportedConfigError(f"config.json: {key} is {nested!r}, expected an object")
    return nested


def tower_config(config: Raw, key: str, defaults: Raw) -> Raw:
    """Return a tower's config with every key; the `{key}_dict` of old checkpoints goes before it, defaults and all.

    Raises:
        UnsupportedConfigError: It is absent or not an object.
    """
    older = config.get(f"{key}_dict")
    if older is None:
        return {**defaults, **sub_config(config, key)}
    return {**(config.get(key) or {}), **defaults, **older}


def require(config: Raw, expected: Iterable[tuple[str, Any]]) -> None:
    """Refuse a config in which a key is given another value than the only one that is built.

    Raises:
        UnsupportedConfigError: Names the key, its value and the one supported.
    """
    for key, value in expected:
        if config.get(key, value) != value:
            raise UnsupportedConfigError(f"config.json: {key} is {config[key]!r}; only {value!r} is built")
