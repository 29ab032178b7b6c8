"""A Llama some of whose layers run through weights that an image changed (VLoRA, arXiv 2405.20339)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from bundle.states import MemoryPlace, State
from export.config import DecoderConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.decoders.llama import DEFAULTS
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import Around, DecoderLayer, Left
from export.nn.dialect import CacheRows, Dialect, Lengths
from export.nn.low_rank import SecondMatrix
from export.nn.mlp import GatedMLP
from export.nn.module import Module, ModuleList
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles

MOST_IMAGES = 2
"""For which the memory has room: the changes of one take 42 MB of VLoRA-7B."""
GENERATOR = "model.multi_modal_projector"
"""Where the checkpoint keeps what makes the changes, as the modules are named."""
_KINDS = "qkvom"


@dataclass(frozen=True)
class Changes:
    """What of a decoder an image changes.

    Attributes:
        kinds: Letters of matrices: queries, keys, values, outputs of attention, and the feed-forward as a whole.
        every: Of so many layers, the last is changed.
        rank: r.
        alpha: The changes are multiplied by alpha / r.
    """

    kinds: str
    every: int
    rank: int
    alpha: float

    @classmethod
    def read(cls, raw: Raw, config: DecoderConfig) -> Changes:
        """Return the changes that a config describes.

        Raises:
            UnsupportedConfigError: Of another decoder, or of a form that is not built.
        """
        require(raw, [("weights_sep", True)])
        kinds, every, rank = str(raw["vlora_type"]), int(raw.get("skip_layers", 1)), int(raw["vlora_rank"])
        if not kinds or len(set(kinds)) != len(kinds) or set(kinds) - set(_KINDS):
            raise UnsupportedConfigError(f"vlora_type {kinds!r}: wanted are letters of {_KINDS}, each once")
        sizes = {"vlora_llm_dim": config.hidden_size, "vlora_llm_depth": config.num_layers}
        for key, size in sizes.items():
            if raw.get(key, size) != size:
                raise UnsupportedConfigError(f"{key} is {raw[key]}; text_config has {size}")
        widths = {config.num_heads * config.head_size, config.num_kv_heads * config.head_size, config.hidden_size}
        if len(widths) > 1:
            raise UnsupportedConfigError(
                f"VLoRA changes matrices of D x D alone; queries, keys and hidden states of this decoder are of the "
                f"widths {sorted(widths)}"
            )
        if every < 1 or config.num_layers % every:
            raise UnsupportedConfigError(f"skip_layers {every}: wanted is a divisor of {config.num_layers} layers")
        alpha = raw.get("vlora_alpha")
        return cls(kinds, every, rank, float(rank if alpha is None else alpha))

    def place(self, layer: int, num_layers: int) -> int | None:
        """Return which of the changed layers one is; None: it is none."""
        return layer // self.every if (layer + 1) % self.every == 0 and layer < num_layers else None


Change = Callable[[OpBuilder, str, ir.Value, ir.Value], ir.Value]
"""(op, a letter, what a matrix reads, what it gives) -> what it is to give."""


class _ChangedAttention(CachedAttention):
    """Attention whose projections are changed."""

    def forward(  # type: ignore[override]
        self,
        op: OpBuilder,
        x: ir.Value,
        angles: Angles | None,
        past: CacheRows,
        lengths: Lengths,
        change: Change,
    ) -> tuple[ir.Value, CacheRows, ir.Value]:
        given = (("q", self.q_proj), ("k", self.k_proj), ("v", self.v_proj))
        query, key, value = (change(op, kind, x, projection(op, x)) for kind, projection in given)
        attended, present, queries = self.attend(op, (query, key, value), angles, past, lengths)
        return change(op, "o", attended, self.o_proj(op, attended)), present, queries


class _ChangedLayer(Module):
    """A layer of Llama; x A B is added to what its projections, or its feed-forward, make of x, with an image."""

    def __init__(self, config: DecoderConfig, dialect: Dialect, number: int, changes: Changes) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps, dialect) for _ in range(2)
        )
        self.self_attn = _ChangedAttention(config, dialect, number)
        self.mlp = GatedMLP(config)
        num_changed, shape = config.num_layers // changes.every, (config.hidden_size, changes.rank)
        scale, self.kinds = changes.alpha / changes.rank, changes.kinds
        self.second = ModuleList(
            [_Second(shape, kind * num_changed + number // changes.every, scale) for kind in range(len(changes.kinds))]
        )

    def forward(self, op: OpBuilder, x: ir.Value, around: Around, states: Sequence[ir.Value]) -> Left:
        key, value, *first = states
        seen = _is_seen(op, around.more[0], first[0])
        changing = dict(zip(self.kinds, zip(first, self.second, strict=True), strict=True))

        def change(op: OpBuilder, kind: str, x: ir.Value, y: ir.Value) -> ir.Value:
            if kind not in changing:
                return y
            matrix, second = changing[kind]
            return op.Add(y, second(op, op.Where(seen, op.MatMul(x, matrix), 0.0)))

        normed, past = self.input_layernorm(op, x), CacheRows(key, value)
        attended, present, queries = self.self_attn(op, normed, around.first_angles, past, around.lengths, change)
        x = op.Add(x, attended)
        normed = self.post_attention_layernorm(op, x)
        x = op.Add(x, change(op, "m", normed, self.mlp(op, normed)))
        return Left(x, (present.key, present.value), queries)


class _Second(Module):
    """Rows [B, T, r * images] through the second matrix, the same for every image."""

    def __init__(self, shape: tuple[int, int], number: int, scale: float) -> None:
        super().__init__()
        self.weight = SecondMatrix(shape, number, scale, f"{GENERATOR}.Bs", "perceptual")
        self.rank = shape[1]

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        of_images = op.Reshape(x, [0, 0, MOST_IMAGES, self.rank])
        return op.MatMul(op.ReduceSum(of_images, [2], keepdims=0), self.weight)


def _is_seen(op: OpBuilder, seen: ir.Value, matrix: ir.Value) -> ir.Value:
    """Return [B, T, M]: whether a token runs through a column of the memory's matrices [B, D, M]."""
    column = op.Range(0, op.Squeeze(op.Shape(matrix, start=2, end=3), [0]), 1)
    first, end = (op.Slice(seen, [at], [at + 1], [2]) for at in (0, 1))
    return op.And(op.GreaterOrEqual(column, first), op.Less(column, end))


class LlamaVLoRA(Decoder):
    """`model_type` llama_vlora, which the family calls it.

    Args:
        config: Sizes.
        changes: What an image changes.
    """

    def __init__(self, config: DecoderConfig, changes: Changes) -> None:
        super().__init__(config)
        self.changes = changes

    @classmethod
    def read(cls, raw: Raw) -> LlamaVLoRA:
        """Return the decoder that a text config describes, the family's keys beside its own."""
        require(raw, [("attention_bias", False), ("mlp_bias", False)])
        config = read_sizes({**DEFAULTS, **raw}, qkv_bias=False)
        return cls(config, Changes.read(raw, config))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Which changes each token runs through."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a layer of Llama, changed or not."""
        if self._place(number) is not None:
            return _ChangedLayer(self.config, dialect, number, self.changes)
        attention = CachedAttention(self.config, dialect, number)
        return DecoderLayer(self.config, dialect, attention, GatedMLP(self.config))

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return keys and values, and the first matrices of a layer's changes."""
        place, rows = self._place(number), super().states_of(number)
        if place is None:
            return rows
        size, num = self.config.hidden_size, self.config.num_layers // self.changes.every
        shape = ("B", size, MOST_IMAGES * self.changes.rank)
        return (
            *rows,
            *(
                State(
                    input=f"perceptual_weights.{number}.{letter}",
                    kind="memory",
                    dtype="float32",
                    shape=shape,
                    memory=MemoryPlace(first_column=(kind * num + place) * size, row_axis=2),
                )
                for kind, letter in enumerate(self.changes.kinds)
            ),
        )

    def _place(self, number: int) -> int | None:
        return self.changes.place(number, self.config.num_layers)
