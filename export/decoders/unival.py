"""The decoder of OFA and UnIVAL (arXiv 2202.03052, 2307.16184): norms within, heads and residuals with gains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.states import MemoryPlace, State
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.bart import EPS, MEMORY_ROWS
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.cross_attention import MemoryAttention
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.linear import Embedding
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.placed_parts import PlacedFeedForward, Switches
from export.nn.placed_scores import MOST_APART, FoldedPlaces, token_distances
from export.nn.rotary import Angles
from graphs.labels import Label


class _Shared:
    """What the entrance makes of a run's places for all layers; each build of a graph fills it anew.

    Attributes:
        queries: [B, T, H*C], behind queries of text.
        across: [B, T, H*C], behind queries of the memory.
        keys: [n, D] of all places.
        num_places: n.
        places: [B, T] of the run's tokens.
        scores: [B, H, T, rows] what places add to scores, once a layer has made it.
        apart: [B, T, rows] how far tokens and rows are apart, once a layer has made it.
    """

    queries: ir.Value
    across: ir.Value
    keys: ir.Value
    num_places: int
    places: ir.Value
    scores: ir.Value | None = None
    apart: ir.Value | None = None


class _Entrance(Module):
    """Embeddings, with their places where these are entangled, normed; and what places add to scores."""

    def __init__(self, config: DecoderConfig, shared: _Shared, *, is_normed: bool, adds_places: bool) -> None:
        super().__init__("")
        size, rows = config.hidden_size, config.max_positions + 2
        self.embed_positions = Embedding(rows, size) if adds_places else None
        self.layernorm_embedding = LayerNorm(size, EPS) if is_normed else None
        self.self_pos_q_linear = FoldedPlaces(rows, size, "self_pos_q_linear")
        self.self_pos_k_linear = FoldedPlaces(rows, size, "self_pos_k_linear")
        self.cross_pos_q_linear = FoldedPlaces(rows, size, "cross_pos_q_linear")
        self.num_places, self._shared = rows, shared

    def forward(self, op: OpBuilder, x: ir.Value, position_ids: ir.Value) -> ir.Value:
        """Return [B, T, D] of x [B, T, D] at places [B, T]."""
        shared = self._shared
        shared.queries = self.self_pos_q_linear(op, position_ids)
        shared.across = self.cross_pos_q_linear(op, position_ids)
        shared.keys, shared.num_places = self.self_pos_k_linear(op, None), self.num_places
        shared.places, shared.scores, shared.apart = position_ids, None, None
        x = x if self.embed_positions is None else op.Add(x, self.embed_positions(op, position_ids))
        return x if self.layernorm_embedding is None else self.layernorm_embedding(op, x)


class _PlacedAttention(CachedAttention):
    """Attention whose scores know places apart from what stands there."""

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        bias: ir.Value | None = None,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        """Return what `CachedAttention` does; `bias` as of `Dialect.cached_attention`."""
        projected = self.q_proj(op, x), *self.keys_and_values(op, x)
        attended, present, queries = self.attend(op, projected, angles, past, lengths, bias=bias)
        return self.o_proj(op, attended), present, queries


class _Layer(Module):
    """Attention to what was said, to the memory, and a feed-forward, each behind a norm."""

    def __init__(
        self, config: DecoderConfig, switches: Switches, dialect: Dialect, number: int, shared: _Shared
    ) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        scale = switches.score_scale(config.head_size)
        self.self_attn = _PlacedAttention(
            config, dialect, number, out_name="out_proj", scale=scale, out_norm=switches.gains(heads)
        )
        self.encoder_attn = MemoryAttention(
            config, bias=True, out_name="out_proj", scale=scale, out_norm=switches.gains(heads)
        )
        self.self_attn_layer_norm, self.encoder_attn_layer_norm = LayerNorm(size, EPS), LayerNorm(size, EPS)
        is_normed = switches.norms_attention
        self.self_attn_ln = LayerNorm(size, EPS) if is_normed else None
        self.cross_attn_ln = LayerNorm(size, EPS) if is_normed else None
        self.feed_forward = PlacedFeedForward(size, config.intermediate_size, switches, rows=None)
        self.distances = _Distances(switches.bucket_size, heads)
        self.num_heads, self.scale, self.dialect, self._shared = heads, scale, dialect, shared

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        """Return what is left of x [B, T, D]; states are keys and values of text, then those of the memory."""
        past, memory = CacheRows(*states[:2]), states[2:]
        bias = self._bias(op, around, past)
        normed = self.self_attn_layer_norm(op, x)
        attended, present, queries = self.self_attn(op, normed, None, past, around.lengths, bias)
        x = op.Add(x, attended if self.self_attn_ln is None else self.self_attn_ln(op, attended))
        normed = self.encoder_attn_layer_norm(op, x)
        seen = self.encoder_attn(op, normed, *memory, around.more[0], self._shared.across)
        x = op.Add(x, seen if self.cross_attn_ln is None else self.cross_attn_ln(op, seen))
        return Left(self.feed_forward(op, x), (present.key, present.value), queries)

    def _bias(self, op: OpBuilder, around: Around, past: CacheRows) -> ir.Value:
        """Return [B, H, T, n] what places add to scores; rows of text stand where their number says."""
        shared, heads = self._shared, [0, 0, self.num_heads, -1]
        if shared.scores is None or shared.apart is None:
            rows = self.dialect.rows(op, around.lengths, past.key)
            # rows that no token has written yet may be more than there are places
            last = shared.num_places - 1
            keys = op.Gather(shared.keys, op.Where(op.Less(rows, last), rows, last), axis=0)
            keys = op.Transpose(op.Reshape(keys, [0, self.num_heads, -1]), perm=[1, 2, 0])
            queries = op.Transpose(op.Reshape(shared.queries, heads), perm=[0, 2, 1, 3])
            shared.scores = op.Mul(op.MatMul(queries, keys), self.scale)
            shared.apart = op.Sub(op.Unsqueeze(shared.places, [2]), rows)
        return op.Add(shared.scores, self.distances(op, shared.apart))


class _Distances(Module):
    """What each head of a layer adds to a score by how far two tokens are apart."""

    def __init__(self, bucket_size: int, num_heads: int) -> None:
        super().__init__("token_rel_pos_table")
        self.weight = Weight(2 * bucket_size - 1, num_heads, label=Label("constant table"))
        self.rows = token_distances(bucket_size)

    def forward(self, op: OpBuilder, apart: ir.Value) -> ir.Value:
        """Return [B, H, T, n] of distances [B, T, n] int64."""
        least = op.Where(op.Less(apart, 1 - MOST_APART), 1 - MOST_APART, apart)
        buckets = op.Gather(op.initializer(ir.tensor(self.rows), "token_distances"), op.Add(least, MOST_APART - 1))
        return op.Transpose(op.Gather(self.weight, buckets, axis=0), perm=[0, 3, 1, 2])


class UnIVALText(Decoder):
    """`model_type` unival_text: the decoder's half of a checkpoint.

    Args:
        config: Sizes.
        switches: What it has beside them.
        memory_rows: M, of one sequence.
        is_normed: Embeddings are normed.
        adds_places: Places are added to embeddings as well.
        scale: Of rows of the table of tokens.
    """

    def __init__(
        self,
        config: DecoderConfig,
        switches: Switches,
        memory_rows: int,
        *,
        is_normed: bool,
        adds_places: bool,
        scale: float,
    ) -> None:
        super().__init__(config)
        self._scale = scale
        self._switches, self._memory_rows, self._shared = switches, memory_rows, _Shared()
        self._is_normed, self._adds_places = is_normed, adds_places

    @classmethod
    def read(cls, raw: Raw) -> UnIVALText:
        """Return the decoder that a config describes, with the family's defaults and `MEMORY_ROWS` in it."""
        sizes = {
            **raw,
            "hidden_size": raw["decoder_embed_dim"],
            "num_hidden_layers": raw["decoder_layers"],
            "num_attention_heads": raw["decoder_attention_heads"],
            "intermediate_size": raw["decoder_ffn_embed_dim"],
            "max_position_embeddings": raw["max_target_positions"],
            "hidden_act": raw["activation_fn"],
            "rms_norm_eps": EPS,
            "attention_bias": True,
        }
        return cls(
            read_sizes(sizes, qkv_bias=True),
            Switches.read(raw),
            int(raw[MEMORY_ROWS]),
            is_normed=bool(raw["layernorm_embedding"]),
            adds_places=not raw["disable_entangle"],
            scale=1.0 if raw["no_scale_embedding"] else math.sqrt(raw["decoder_embed_dim"]),
        )

    @property
    def embedding_scale(self) -> float:
        """The root of the width where the config says so."""
        return self._scale

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What each token sees of the memory."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def entrance(self) -> Module:
        """Return what comes before the layers, which learn of places from it."""
        return _Entrance(self.config, self._shared, is_normed=self._is_normed, adds_places=self._adds_places)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return none: nothing turns."""
        return ()

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return both attentions and a feed-forward."""
        return _Layer(self.config, self._switches, dialect, number, self._shared)

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return LayerNorm(self.config.hidden_size, EPS, name="layer_norm")

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values of text, then those of the memory, whose keys have their places behind them."""
        heads, size, rows = self.config.num_kv_heads, self.config.head_size, self._memory_rows
        first = 3 * number * heads * size
        key = MemoryPlace(first_column=first, row_axis=3)
        value = MemoryPlace(first_column=first + 2 * heads * size, row_axis=2)
        made = (
            (f"cross_key_values.{number}.key", ("B", heads, 2 * size, rows), key),
            (f"cross_key_values.{number}.value", ("B", heads, rows, size), value),
        )
        memory = [State(input=name, kind="memory", dtype="float32", shape=s, memory=place) for name, s, place in made]
        return (*super().states_of(number), *memory)
