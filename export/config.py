"""A Hugging Face config read into typed sizes; what is not built is refused here, by name and value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundle.errors import UnsupportedConfigError
from export.rope import RopeConfig
from export.tower_experts import TowerExperts

Raw = Mapping[str, Any]


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
