"""LFM3 (Liquid AI, as transformers has it): LFM2's convolutions beside attention near and far, gated by heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.states import State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.decoder import Decoder
from export.decoders.lfm2 import GatedThree
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles
from export.nn.short_convolution import ShortConvolution
from export.rope import RopeConfig

FULL, SLIDING, CONVOLUTION = "full_attention", "sliding_attention", "conv"
DEFAULTS: Raw = {
    "vocab_size": 128_000,
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "attention_bias": False,
    "conv_bias": False,
    "conv_L_cache": 7,
    "sliding_window": 256,
    "use_sandwich_norm": True,
    "use_attention_gate": True,
}
_ROPES: Raw = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
}


@dataclass(frozen=True)
class _Proportional(RopeConfig):
    """Pairs are those of whole heads, of which the slow ones stand still (transformers, `rope_type` proportional)."""

    def inverse_frequencies(self, head_size: int) -> npt.NDArray[np.float32]:
        """Return [C/2] float32, radians per position of each pair of a head."""
        turning = int(self.part * head_size // 2)
        exponents = np.arange(0, 2 * turning, 2, dtype=np.float32) / np.float32(head_size)
        frequencies = 1.0 / np.float32(self.theta) ** exponents / np.float32(self.factor)
        return np.pad(frequencies.astype(np.float32), (0, head_size // 2 - turning))


@dataclass(frozen=True)
class _Ways:
    """What an LFM3 has beside its sizes.

    Attributes:
        kinds: Of each layer.
        ropes: Of layers that see everything, and of those that see near.
        window: Rows that the latter's tokens see.
        taps: Tokens that a convolution spans.
        conv_bias: Convolutions and their projections add one.
        norms_behind: What a layer adds is normed.
        gates_heads: What heads give is multiplied by a gate of each.
    """

    kinds: tuple[str, ...]
    ropes: tuple[RopeConfig, RopeConfig]
    window: int | None
    taps: int
    conv_bias: bool
    norms_behind: bool
    gates_heads: bool


class _Attention(CachedAttention):
    """Attention whose heads are gated by what the layer reads."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, layer: int, *, is_gated: bool) -> None:
        query_norm, key_norm = (RMSNorm(config.head_size, config.rms_norm_eps, dialect) for _ in range(2))
        super().__init__(config, dialect, layer, (query_norm, key_norm))
        self.g_proj = Linear(config.hidden_size, config.num_heads, rows=None, bias=False) if is_gated else None

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        of_queries: Angles | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return as `CachedAttention`."""
        projected = self.q_proj(op, x), *self.keys_and_values(op, x)
        attended, present, queries = self.attend(op, projected, angles, past, lengths, of_queries)
        if self.g_proj is not None:
            gates = op.Unsqueeze(op.Sigmoid(self.g_proj(op, x)), [3])
            by_head = op.Mul(op.Reshape(attended, [0, 0, self.heads.num, self.heads.size]), gates)
            attended = op.Reshape(by_head, [0, 0, self.heads.num * self.heads.size])
        return self.o_proj(op, attended), present, queries


class _Layer(Module):
    """What mixes tokens, then a feed-forward, each between two norms or behind one."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, ways: _Ways, number: int) -> None:
        super().__init__()
        before, ffn, post, post_ffn = (RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(4))
        self.operator_norm, self.ffn_norm = before, ffn
        self.post_operator_norm = post if ways.norms_behind else None
        self.post_ffn_norm = post_ffn if ways.norms_behind else None
        self.feed_forward = GatedThree(config.hidden_size, config.intermediate_size)
        kind = ways.kinds[number]
        self.kind = kind
        if kind == CONVOLUTION:
            self.conv = ShortConvolution(config.hidden_size, ways.taps, bias=ways.conv_bias)
        else:
            self.self_attn = _Attention(config, dialect, number, is_gated=ways.gates_heads)

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values, or a convolution's last inputs."""
        left = self._mixed(op, self.operator_norm(op, x), around, states)
        x = op.Add(x, _normed(op, self.post_operator_norm, left.hidden))
        fed = self.feed_forward(op, self.ffn_norm(op, x))
        return Left(op.Add(x, _normed(op, self.post_ffn_norm, fed)), left.states, left.queries)

    def _mixed(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        if self.kind == CONVOLUTION:
            mixed, state = self.conv(op, x, *states)
            return Left(mixed, (state,), None)
        angles = around.angles[int(self.kind == SLIDING)]
        attended, present, queries = self.self_attn(op, x, angles, CacheRows(*states), around.lengths)
        return Left(attended, (present.key, present.value), queries)


def _normed(op: OpBuilder, norm: Module | None, x: ir.Value) -> ir.Value:
    return x if norm is None else norm(op, x)


class Lfm3(Decoder):
    """`model_type` lfm3.

    Args:
        config: Sizes.
        ways: What it has beside them.
    """

    def __init__(self, config: DecoderConfig, ways: _Ways) -> None:
        super().__init__(config)
        self._ways = ways

    @classmethod
    def read(cls, raw: Raw) -> Lfm3:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Kinds of layers, windows or rotary embeddings that are not built.
        """
        full = {**DEFAULTS, **raw}
        ropes = _read_ropes(full)
        kinds = _read_kinds(full)
        taps, window = full["conv_L_cache"], full["sliding_window"]
        if not isinstance(taps, int) or taps < 2:
            raise UnsupportedConfigError(f"text_config.conv_L_cache {taps!r}: a convolution spans 2 tokens at least")
        if SLIDING in kinds and (not isinstance(window, int) or window < 1):
            raise UnsupportedConfigError(
                f"text_config.sliding_window {window!r}: layers of kind {SLIDING} need a number of tokens, 1 at least"
            )
        sizes = {"hidden_act": "silu", "rms_norm_eps": full["norm_eps"], "mlp_bias": False}
        whole = {**full, **sizes, "rope_parameters": None, "rope_scaling": None}
        config = read_sizes(whole, qkv_bias=bool(full["attention_bias"]))
        flags = (bool(full[name]) for name in ("conv_bias", "use_sandwich_norm", "use_attention_gate"))
        return cls(config, _Ways(kinds, ropes, window, taps, *flags))

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see; None: all."""
        return self._ways.window if self._ways.kinds[number] == SLIDING else None

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of layers that see everything, and of those that see near."""
        names = ("rotary_far_frequencies", "rotary_near_frequencies")
        size = self.config.head_size
        return tuple(
            rotary_angles(op, position_ids, rope, size, name)
            for rope, name in zip(self._ways.ropes, names, strict=True)
        )

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a convolution or attention, and a gated feed-forward."""
        return _Layer(self.config, dialect, self._ways, number)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer, which the checkpoint names as if it stood before the first."""
        return RMSNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect, name="embedding_norm")

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values, or the last inputs of a convolution, as transformers.js names LFM2's."""
        if self._ways.kinds[number] != CONVOLUTION:
            return super().states_of(number)
        return (
            State(
                input=f"past_conv.{number}",
                output=f"present_conv.{number}",
                kind="fixed",
                dtype="float32",
                shape=("B", self._ways.taps - 1, self.config.hidden_size),
            ),
        )


def _read_kinds(full: Raw) -> tuple[str, ...]:
    """Return the kind of each layer.

    Raises:
        UnsupportedConfigError: One that is not built, another number of them, or none with attention.
    """
    num_layers = full["num_hidden_layers"]
    kinds = full.get("layer_types") or [
        FULL if number % 4 == 2 else SLIDING if number % 4 == 0 and number else CONVOLUTION
        for number in range(num_layers)
    ]
    found = set(kinds)
    if len(kinds) != num_layers or not found <= {FULL, SLIDING, CONVOLUTION} or found <= {CONVOLUTION}:
        raise UnsupportedConfigError(
            f"text_config.layer_types {kinds!r:.200}: wanted is one of {FULL}, {SLIDING} and {CONVOLUTION} for each of "
            f"the {num_layers} layers, attention of one at least"
        )
    return tuple(kinds)


def _read_ropes(full: Raw) -> tuple[RopeConfig, RopeConfig]:
    """Return the rotary embedding of layers that see everything, and of those that see near.

    Raises:
        UnsupportedConfigError: A kind that is not built.
    """
    stated = full.get("rope_parameters") or _ROPES
    made = []
    for kind in (FULL, SLIDING):
        given = stated.get(kind) or _ROPES[kind]
        rope, part = given.get("rope_type", "default"), float(given.get("partial_rotary_factor", 1.0))
        if rope not in ("default", "proportional") or (rope == "default" and part != 1.0):
            raise UnsupportedConfigError(
                f"text_config.rope_parameters {kind} {given!r}: built are rope_type default of whole heads, and "
                "proportional"
            )
        theta = float(given.get("rope_theta", _ROPES[kind]["rope_theta"]))
        factor = float(given.get("factor", 1.0)) if rope == "proportional" else 1.0
        made.append(_Proportional("default", theta, factor, part=part))
    return made[0], made[1]
