"""Gemma 4's decoder (google/gemma-4-E2B): numbers of each token for each layer, and layers that read another's cache.

Layers with windows and layers that see everything have heads of different sizes, which turn by different angles. The
last `num_kv_shared_layers` have no keys and values: each reads those of the last layer of its kind that has some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from bundle.states import State
from export.config import DecoderConfig, Raw, require
from export.decoders.decoder import Decoder
from export.decoders.gemma2 import FULL, SLIDING, read_gemma, read_windows
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.mlp import GatedMLP
from export.nn.module import Module, Weight
from export.nn.norms import BareRMSNorm, RMSNorm
from export.nn.per_layer_inputs import PerLayerInputs
from export.nn.rotary import Angles, rotary_angles
from export.nn.shared_attention import SharedAttention
from export.rope import RopeConfig

DEFAULTS: Raw = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "pad_token_id": 0,
}
_ROPES: Mapping[str, Raw] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_GLOBAL_HEAD_SIZE = 512
_PATTERN = 6
"""Every so many layers one sees everything, where the config does not list their kinds."""
_KINDS = (FULL, SLIDING)
"""In the order of the decoder's angles."""
_SCALE = 1.0
"""Of scores: queries and keys are normed."""


@dataclass(frozen=True)
class LayerSizes:
    """What differs between a decoder's layers.

    Attributes:
        kind: FULL or SLIDING.
        head_size: C.
        num_kv_heads: K.
        source: The layer whose keys and values it reads; None: it has its own.
        intermediate_size: Of its feed-forward.
    """

    kind: str
    head_size: int
    num_kv_heads: int
    source: int | None
    intermediate_size: int


class Gemma4Text(Decoder):
    """`model_type` gemma4_text.

    Args:
        config: Sizes; heads are those of layers with windows.
        layers: What differs between them.
        windows: Rows that the tokens of each layer see; None: all.
        ropes: Rotary embeddings of the kinds FULL and SLIDING.
        per_layer: P, numbers of a token for each layer; 0: there are none.
        softcap: As of `Decoder.logit_softcap`.
        values_are_keys: Of layers that see everything.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[LayerSizes],
        windows: tuple[int | None, ...],
        ropes: Mapping[str, RopeConfig],
        per_layer: int,
        softcap: float,
        *,
        values_are_keys: bool,
    ) -> None:
        super().__init__(config)
        self._layers, self._windows, self._ropes = tuple(layers), windows, ropes
        self._per_layer, self._softcap, self._values_are_keys = per_layer, softcap, values_are_keys

    @classmethod
    def read(cls, raw: Raw) -> Gemma4Text:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Experts, texts or images that see what comes behind them, a table of too few tokens,
                or layers whose keys and values no layer before them has.
        """
        merged = {**DEFAULTS, **raw}
        _refuse(merged)
        kinds = _kinds(merged)
        ropes = {**_ROPES, **(merged.get("rope_parameters") or {})}
        whole = {**merged, "layer_types": kinds, "rope_parameters": ropes[SLIDING], "rope_scaling": None}
        config = read_gemma(whole)
        return cls(
            config,
            _layers(merged, config, kinds),
            read_windows(whole, _PATTERN),
            {kind: RopeConfig.read({"rope_parameters": ropes[kind]}) for kind in _KINDS},
            int(merged["hidden_size_per_layer_input"] or 0),
            float(merged.get("final_logit_softcapping") or 0.0),
            values_are_keys=bool(merged.get("attention_k_eq_v", False)),
        )

    @property
    def embedding_scale(self) -> float:
        """The root of the width; features of images are not scaled."""
        return math.sqrt(self.config.hidden_size)

    @property
    def logit_softcap(self) -> float:
        """The c of logits; 0: none."""
        return self._softcap

    @property
    def per_layer_table(self) -> Module | None:
        """[B, T] -> [B, T, L*P], the numbers of tokens for all layers; None: there are none."""
        if not self._per_layer:
            return None
        return Embedding(
            self.config.vocab_size,
            self.config.num_layers * self._per_layer,
            name="embed_tokens_per_layer",
            scale=math.sqrt(self._per_layer),
        )

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """Numbers of tokens for layers, where there are some."""
        if not self._per_layer:
            return ()
        shape = ("B", "T", self.config.num_layers * self._per_layer)
        return (TensorSpec(name=tensors.PER_LAYER_INPUTS, dtype="float32", shape=shape),)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The same."""
        return self.looked_up

    def preparation(self, dialect: Dialect) -> Module | None:
        """Return what adds to the numbers of tokens for layers what embeddings say."""
        return PerLayerInputs(self.config, dialect, self._per_layer) if self._per_layer else None

    def head_size_of(self, number: int) -> int:
        """Return C of a layer."""
        return self._layers[number].head_size

    def source_of(self, number: int) -> int | None:
        """Return the layer whose keys and values a layer reads; None: it has its own."""
        return self._layers[number].source

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see; None: all."""
        return self._windows[number]

    def norm(self, dialect: Dialect) -> Module:
        """Return a norm of hidden states."""
        return RMSNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of layers that see everything, and of the others."""
        names = ("rotary_global_frequencies", "rotary_local_frequencies")
        sizes = {layer.kind: layer.head_size for layer in self._layers}
        return tuple(
            rotary_angles(op, position_ids, self._ropes[kind], sizes[kind], name)
            for kind, name in zip(_KINDS, names, strict=True)
            if kind in sizes
        )

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values, of the layer's own sizes; nothing of one that reads another's."""
        own = self._layers[number]
        if own.source is not None:
            return ()
        shape = ("B", own.num_kv_heads, "S", own.head_size)
        return tuple(
            State.model_validate({**state.model_dump(), "shape": shape}) for state in super().states_of(number)
        )

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention and a gated feed-forward, each between two norms, and what reads a token's own numbers."""
        own = self._layers[number]
        config = replace(
            self.config,
            head_size=own.head_size,
            num_kv_heads=own.num_kv_heads,
            intermediate_size=own.intermediate_size,
        )
        attention = self._attention(config, dialect, number)
        return _Layer(config, dialect, attention, (number, self._per_layer), self._angles_of(own.kind))

    def _attention(self, config: DecoderConfig, dialect: Dialect, number: int) -> Module:
        own, (size, eps) = self._layers[number], (config.head_size, config.rms_norm_eps)
        if own.source is not None:
            return SharedAttention(config, dialect, _SCALE)
        return CachedAttention(
            config,
            dialect,
            number,
            (RMSNorm(size, eps, dialect), RMSNorm(size, eps, dialect)),
            scale=_SCALE,
            value_norm=BareRMSNorm(size, eps, dialect),
            values_are_keys=self._values_are_keys and own.kind == FULL,
        )

    def _angles_of(self, kind: str) -> int:
        return [each for each in _KINDS if any(layer.kind == each for layer in self._layers)].index(kind)


class _Layer(Module):
    """Attention and feed-forward, each between two norms, then a gate that lets a token's own numbers in.

    Args:
        config: Sizes of the layer.
        dialect: How its norms are written.
        attention: `CachedAttention`, or one of the same form that leaves no rows.
        own: The layer's number, and P.
        angles: Which of the decoder's angles it turns by.
    """

    def __init__(
        self, config: DecoderConfig, dialect: Dialect, attention: Module, own: tuple[int, int], angles: int
    ) -> None:
        super().__init__()
        self.number, per_layer = own
        norms = [RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(5)]
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:4]
        self.self_attn = attention
        self.mlp = GatedMLP(config)
        self.layer_scalar = Weight(1)
        self.angles, self.hidden_act = angles, config.hidden_act
        self.has_own = bool(per_layer)
        if self.has_own:
            self.per_layer_input_gate = Linear(config.hidden_size, per_layer, rows=None, bias=False)
            self.per_layer_projection = Linear(per_layer, config.hidden_size, rows=None, bias=False)
            self.post_per_layer_input_norm = norms[4]

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values, its own or another layer's."""
        normed, past = self.input_layernorm(op, x), CacheRows(*states)
        attended, present, queries = self.self_attn(op, normed, around.angles[self.angles], past, around.lengths)
        x = op.Add(x, self.post_attention_layernorm(op, attended))
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, x))
        x = op.Add(x, self.post_feedforward_layernorm(op, fed))
        if self.has_own:
            x = op.Add(x, self._own(op, x, around.more[self.number]))
        kept = () if present is None else (present.key, present.value)
        return Left(op.Mul(x, self.layer_scalar), kept, queries)

    def _own(self, op: OpBuilder, x: ir.Value, numbers: ir.Value) -> ir.Value:
        """Return [B, T, D] of a token's numbers for this layer [B, T, P], as x lets them in."""
        gate = activation(op, self.hidden_act, self.per_layer_input_gate(op, x))
        return self.post_per_layer_input_norm(op, self.per_layer_projection(op, op.Mul(gate, numbers)))


def _refuse(merged: Raw) -> None:
    """Refuse what other sizes of the model have.

    Raises:
        UnsupportedConfigError: It is asked for.
    """
    require(merged, [("enable_moe_block", False)])
    if sight := merged.get("use_bidirectional_attention"):
        raise UnsupportedConfigError(
            f"text_config.use_bidirectional_attention {sight!r}: tokens that see what comes behind them in layers with "
            "windows alone are not built; google/gemma-4-E2B and E4B have null"
        )
    if merged["hidden_size_per_layer_input"] and merged["vocab_size_per_layer_input"] != merged["vocab_size"]:
        raise UnsupportedConfigError(
            f"text_config.vocab_size_per_layer_input {merged['vocab_size_per_layer_input']} and vocab_size "
            f"{merged['vocab_size']}: built are tables of the same tokens"
        )


def _kinds(merged: Raw) -> list[str]:
    """Return the kind of each layer; the last one sees everything, whatever the config says."""
    num_layers = merged["num_hidden_layers"]
    kinds = list(merged.get("layer_types") or ())
    kinds = kinds or [FULL if number % _PATTERN == 0 else SLIDING for number in range(1, num_layers + 1)]
    return [*kinds[:-1], FULL]


def read_sources(merged: Raw, kinds: Sequence[str]) -> list[int | None]:
    """Return the layer whose keys and values each layer reads; None of one that has its own.

    Raises:
        UnsupportedConfigError: No layer before those that share has some of their kind.
    """
    num_shared = int(merged.get("num_kv_shared_layers") or 0)
    first_shared = len(kinds) - num_shared
    last = {kind: number for number, kind in enumerate(kinds[:first_shared])}
    if not 0 < first_shared <= len(kinds) or set(kinds) - set(last):
        raise UnsupportedConfigError(
            f"text_config.num_kv_shared_layers {num_shared} of {len(kinds)} layers: each of them reads the keys "
            f"and values of a layer before all of them of its own kind; there are {', '.join(sorted(last)) or 'none'}"
        )
    return [last[kind] if number >= first_shared else None for number, kind in enumerate(kinds)]


def _layers(merged: Raw, config: DecoderConfig, kinds: Sequence[str]) -> list[LayerSizes]:
    is_wide = bool(merged.get("use_double_wide_mlp", False))
    layers = []
    for number, (kind, source) in enumerate(zip(kinds, read_sources(merged, kinds), strict=True)):
        heads = _heads(merged, kind, number)
        if config.num_heads % heads["num_key_value_heads"]:
            raise UnsupportedConfigError(
                f"num_attention_heads {config.num_heads} is not a multiple of the {heads['num_key_value_heads']} "
                f"num_key_value_heads of layer {number}"
            )
        inner = config.intermediate_size * (2 if is_wide and source is not None else 1)
        layers.append(LayerSizes(kind, heads["head_dim"], heads["num_key_value_heads"], source, inner))
    if len({(layer.kind, layer.head_size, layer.num_kv_heads) for layer in layers}) > len(set(kinds)):
        raise UnsupportedConfigError("text_config.per_layer_config: built are heads of one size for each kind of layer")
    return layers


def _heads(merged: Raw, kind: str, number: int) -> dict[str, Any]:
    """Return `head_dim` and `num_key_value_heads` of a layer, in transformers' newer spelling or its older one."""
    usual = {"head_dim": merged["head_dim"], "num_key_value_heads": merged["num_key_value_heads"]}
    of_layers = merged.get("per_layer_config")
    if of_layers is not None:
        stated = of_layers.get(str(number)) or {}
        if unknown := set(stated) - set(usual):
            raise UnsupportedConfigError(
                f"text_config.per_layer_config: {', '.join(sorted(unknown))} of layer {number}; built are "
                f"{', '.join(usual)} by layer"
            )
        return {**usual, **stated}
    if kind != FULL:
        return usual
    num_kv = merged.get("num_global_key_value_heads") if merged.get("attention_k_eq_v") else None
    size = merged.get("global_head_dim", _GLOBAL_HEAD_SIZE)
    return {"head_dim": size, "num_key_value_heads": num_kv or usual["num_key_value_heads"]}
