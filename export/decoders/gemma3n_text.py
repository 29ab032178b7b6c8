"""Gemma 3n's decoder (google/gemma-3n-E2B-it): several streams, of which each layer computes one and corrects all.

As Gemma 4's, it has numbers of each token for each layer, and last layers that read another's cache. What is its own:
AltUp (arXiv 2301.13310), LAuReL (arXiv 2411.07501, the low-rank form), and gates of which a share is closed by how far
they lie above their mean (arXiv 2506.06644). Streams go from layer to layer side by side, [B, T, A*D].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import DecoderConfig, Raw
from export.decoders.gemma2 import FULL, SLIDING, read_gemma, read_windows
from export.decoders.gemma4_text import Gemma4Text, LayerSizes, read_sources
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect
from export.nn.linear import Embedding, Linear, activation
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.per_layer_inputs import PerLayerInputs
from export.nn.streams import AltUp, JoinedStreams, SpreadStreams, Streams, magnitude_of
from export.rope import RopeConfig

DEFAULTS: Raw = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}
_THETAS: Mapping[str, float] = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_OLD_THETAS: Mapping[str, str] = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
_PATTERN = 5
"""Every so many layers one sees everything, where the config does not list their kinds."""
_SPARSE_LAYERS, _SPARSITY = 10, 0.95
"""Of models of more layers, where the config says nothing of it."""
_ROOT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Gemma3nSizes:
    """What Gemma 4's decoder has no number for.

    Attributes:
        streams: What goes from layer to layer.
        rank: Of the low-rank residuals.
        sparsities: Of each layer, the share of its gates that is closed; 0: none is.
        per_layer_tokens: Tokens of the table of numbers for layers; others look up the first.
    """

    streams: Streams
    rank: int
    sparsities: tuple[float, ...]
    per_layer_tokens: int


class Gemma3nText(Gemma4Text):
    """`model_type` gemma3n_text.

    Args:
        config: Sizes.
        layers: What differs between them.
        windows: Rows that the tokens of each layer see; None: all.
        ropes: Rotary embeddings of the kinds FULL and SLIDING.
        per_layer: P, numbers of a token for each layer.
        softcap: As of `Decoder.logit_softcap`.
        own: What Gemma 4's has not.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[LayerSizes],
        windows: tuple[int | None, ...],
        ropes: Mapping[str, RopeConfig],
        per_layer: int,
        softcap: float,
        own: Gemma3nSizes,
    ) -> None:
        super().__init__(config, layers, windows, ropes, per_layer, softcap, values_are_keys=False)
        self.own = own

    @classmethod
    def read(cls, raw: Raw) -> Gemma3nText:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: No numbers of tokens for layers, a list that is not as long as there are layers, an
                active stream that is not there, or layers whose keys and values no layer before them has.
        """
        merged = {**DEFAULTS, **raw}
        num_layers, ropes = merged["num_hidden_layers"], {kind: _read_rope(merged, kind) for kind in (FULL, SLIDING)}
        inner = _by_layer(merged, "intermediate_size", num_layers)
        kinds = list(merged.get("layer_types") or ()) or [
            FULL if number % _PATTERN == 0 else SLIDING for number in range(1, num_layers + 1)
        ]
        whole = {
            **merged,
            "layer_types": kinds,
            "intermediate_size": inner[0],
            "rope_parameters": ropes[SLIDING],
            "rope_scaling": None,
        }
        config, windows = read_gemma(whole), read_windows(whole, _PATTERN)
        layers = [
            LayerSizes(kind, config.head_size, config.num_kv_heads, source, int(width))
            for kind, source, width in zip(kinds, read_sources(merged, kinds), inner, strict=True)
        ]
        return cls(
            config,
            layers,
            windows,
            {kind: RopeConfig.read({"rope_parameters": rope}) for kind, rope in ropes.items()},
            int(merged["hidden_size_per_layer_input"] or 0),
            float(merged["final_logit_softcapping"] or 0.0),
            _read_own(merged, num_layers),
        )

    @property
    def per_layer_table(self) -> Module:
        """[B, T] -> [B, T, L*P], the numbers of tokens for all layers; those beyond the table look up the first."""
        size = self.config.num_layers * self._per_layer
        return Embedding(
            self.own.per_layer_tokens, size, name="embed_tokens_per_layer", scale=math.sqrt(self._per_layer)
        )

    def entrance(self) -> Module:
        """Return what makes streams of embeddings."""
        return SpreadStreams(self.config.hidden_size, self.own.streams.num)

    def preparation(self, dialect: Dialect) -> Module:
        """Return what adds to the numbers of tokens for layers what embeddings say."""
        return PerLayerInputs(self.config, dialect, self._per_layer, self.own.streams.num)

    def norm(self, dialect: Dialect) -> Module:
        """Return what makes one of all streams, with the norm behind."""
        return JoinedStreams(self.config, dialect, self.own.streams.num)

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """Numbers of tokens for layers."""
        shape = ("B", "T", self.config.num_layers * self._per_layer)
        return (TensorSpec(name=tensors.PER_LAYER_INPUTS, dtype="float32", shape=shape),)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention beside a low-rank residual, a feed-forward, and what predicts and corrects streams."""
        own = self._layers[number]
        config = replace(self.config, intermediate_size=own.intermediate_size)
        attention = self._attention(config, dialect, number)
        return _Layer(config, dialect, attention, (number, self._per_layer, self._angles_of(own.kind)), self.own)


class _Laurel(Module):
    """x and the norm of what two narrow matrices make of it (arXiv 2411.07501)."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, rank: int) -> None:
        super().__init__()
        self.linear_left = Linear(config.hidden_size, rank, rows=None, bias=False)
        self.linear_right = Linear(rank, config.hidden_size, rows=None, bias=False)
        self.post_laurel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dialect)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Add(x, self.post_laurel_norm(op, self.linear_right(op, self.linear_left(op, x))))


class _SparseMLP(GatedMLP):
    """A gated feed-forward; of gates before their activation only what is above the others' quantile is left.

    The quantile is a normal distribution's of their mean and deviation (arXiv 2506.06644, section 3).
    """

    def __init__(self, config: DecoderConfig, sparsity: float) -> None:
        super().__init__(config)
        self.deviations = NormalDist().inv_cdf(sparsity)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = self.gate_proj(op, x)
        above = op.Sub(gate, op.ReduceMean(gate, [-1], keepdims=1))
        quantile = op.Mul(magnitude_of(op, above), self.deviations)
        gate = activation(op, self.hidden_act, op.Relu(op.Sub(above, quantile)))
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class _Layer(Module):
    """Streams predicted, one of them computed, all of them corrected; then others than the first get numbers of tokens.

    Args:
        config: Sizes of the layer.
        dialect: How its norms are written.
        attention: `CachedAttention`, or one of the same form that leaves no rows.
        own: The layer's number, P, and which of the decoder's angles it turns by.
        sizes: What Gemma 4's decoder has no number for.
    """

    def __init__(
        self, config: DecoderConfig, dialect: Dialect, attention: Module, own: tuple[int, int, int], sizes: Gemma3nSizes
    ) -> None:
        super().__init__()
        self.number, per_layer, self.angles = own
        size, sparsity = config.hidden_size, sizes.sparsities[self.number]
        norms = [RMSNorm(size, config.rms_norm_eps, dialect) for _ in range(5)]
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:4]
        self.post_per_layer_input_norm = norms[4]
        self.self_attn = attention
        self.mlp = _SparseMLP(config, sparsity) if sparsity else GatedMLP(config)
        self.altup = AltUp(config, dialect, sizes.streams)
        self.laurel = _Laurel(config, dialect, sizes.rank)
        self.per_layer_input_gate = Linear(size, per_layer, rows=None, bias=False)
        self.per_layer_projection = Linear(per_layer, size, rows=None, bias=False)
        self.hidden_act, self.num, self.size = config.hidden_act, sizes.streams.num, size

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of streams [B, T, A*D]; states are keys and values, its own or another layer's."""
        predicted, active = self.altup(op, op.Reshape(x, [0, 0, self.num, self.size]))
        normed, past = self.input_layernorm(op, active), CacheRows(*states)
        beside = self.laurel(op, normed)
        attended, present, queries = self.self_attn(op, normed, around.angles[self.angles], past, around.lengths)
        both = op.Add(op.Add(active, self.post_attention_layernorm(op, attended)), beside)
        computed = op.Mul(both, _ROOT_HALF)
        fed = self.mlp(op, self.pre_feedforward_layernorm(op, computed))
        computed = op.Add(computed, self.post_feedforward_layernorm(op, fed))
        corrected, active = self.altup(op, predicted, computed)
        streams = op.Add(corrected, self._own(op, active, around.more[self.number]))
        kept = () if present is None else (present.key, present.value)
        return Left(op.Reshape(streams, [0, 0, self.num * self.size]), kept, queries)

    def _own(self, op: OpBuilder, active: ir.Value, numbers: ir.Value) -> ir.Value:
        """Return [B, T, A, D] of a token's numbers for this layer [B, T, P], as the active stream lets them in.

        The first stream gets nothing, whichever is active.
        """
        gate = activation(op, self.hidden_act, self.per_layer_input_gate(op, active))
        let_in = self.post_per_layer_input_norm(op, self.per_layer_projection(op, op.Mul(gate, numbers)))
        others = np.ones((self.num, 1), np.float32)
        others[0] = 0
        return op.Mul(op.Unsqueeze(let_in, [2]), op.initializer(ir.tensor(others), "others"))


def _by_layer(merged: Raw, key: str, num_layers: int) -> list[float]:
    """Return a number of each layer, where the config gives one for all or a list.

    Raises:
        UnsupportedConfigError: A list of another length.
    """
    stated = merged[key]
    found = list(stated) if isinstance(stated, Sequence) else [stated] * num_layers
    if len(found) != num_layers:
        raise UnsupportedConfigError(f"text_config.{key} has {len(found)} numbers; there are {num_layers} layers")
    return found


def _read_own(merged: Raw, num_layers: int) -> Gemma3nSizes:
    num, active = merged["altup_num_inputs"], merged["altup_active_idx"]
    if not 0 <= active < num:
        raise UnsupportedConfigError(f"text_config.altup_active_idx {active}: there are altup_num_inputs {num} streams")
    if not merged["hidden_size_per_layer_input"]:
        raise UnsupportedConfigError(
            "text_config.hidden_size_per_layer_input 0: layers without numbers of tokens are Gemma 4's, not Gemma 3n's"
        )
    stated = merged.get("activation_sparsity_pattern")
    if stated is None:
        sparse = _SPARSE_LAYERS if num_layers > _SPARSE_LAYERS else 0
        stated = [_SPARSITY] * sparse + [0.0] * (num_layers - sparse)
    sparsities = _by_layer({"activation_sparsity_pattern": stated}, "activation_sparsity_pattern", num_layers)
    if not all(0 <= each < 1 for each in sparsities):
        raise UnsupportedConfigError(
            f"text_config.activation_sparsity_pattern {sparsities}: a share of closed gates is from 0 to below 1"
        )
    return Gemma3nSizes(
        Streams(num, active, bool(merged["altup_correct_scale"])),
        int(merged["laurel_rank"]),
        tuple(float(each) for each in sparsities),
        int(merged["vocab_size_per_layer_input"]),
    )


def _read_rope(merged: Raw, kind: str) -> dict[str, object]:
    """Return the rotary settings of a kind of layers, in transformers' newer spelling or its older one."""
    of_kind = dict((merged.get("rope_parameters") or {}).get(kind) or {})
    older = dict(merged.get("rope_scaling") or {}) if kind == FULL else {}
    theta = merged.get(_OLD_THETAS[kind]) or _THETAS[kind]
    return {"rope_type": "default", "rope_theta": theta, **of_kind, **older}
