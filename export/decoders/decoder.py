"""What a decoder is: sizes read from a config, and how its layers are composed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.manifest import TensorSpec
from bundle.states import State
from export.config import DecoderConfig, Raw
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles

_PARTS: tuple[Literal["key", "value"], ...] = ("key", "value")


class Decoder(ABC):
    """One kind of causal decoder; a file each, and a line in `export.decoders.table`.

    Class attributes:
        position_axes: Sizes before [B, T] of `position_ids`: none, or (3,) for time, height and width.
        keeps_prompt: Its tokens see all of the prompt before them, however far layers with windows see; `inputs` begin
            with `memory_seen`, whose second numbers are how many rows that is.

    Attributes:
        has_head_bias: The output matrix has biases.
        config: Sizes, and the length groups of its layers; export may group them anew before graphs are built.
        looks_ahead: Its tokens may see others behind them, which an input tells; the family sets it.
        skips_text: Of those behind them they see tokens alone that look ahead as well; the family sets it.
        position_parts: Of one position, at which tokens may stand in between (V2PE, arXiv 2412.09616): `position_ids`
            [2, B, T] are then whole positions, and these plus how many parts beyond; None: they stand at whole ones.
    """

    position_axes: ClassVar[tuple[int, ...]] = ()
    keeps_prompt: ClassVar[bool] = False
    has_head_bias: bool = False

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.looks_ahead = self.skips_text = False
        self.position_parts: int | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """Sizes before [B, T] of `position_ids`."""
        return self.position_axes if self.position_parts is None else (2,)

    @classmethod
    @abstractmethod
    def read(cls, raw: Raw) -> Decoder:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: A setting that is not built.
        """

    @abstractmethod
    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return a layer: (x, `Around`, states) -> `Left` (export.nn.decoder_layer)."""

    def entrance(self) -> Module | None:
        """Return (x, position_ids) -> x, which embeddings pass before the first layer; None: nothing."""
        return None

    def preparation(self, dialect: Dialect) -> Module | None:
        """Return (x, values of `inputs`) -> what layers find in `around.more`; None: they find those as they are.

        x [B, T, D] are embeddings, features of images among them.
        """
        return None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes beside embeddings, positions, lengths and indices; `runtime.feeds` must know each."""
        return ()

    @property
    def looked_up(self) -> tuple[TensorSpec, ...]:
        """Those of `inputs` that tables give by token, beside embeddings; the family's `table()` must give each."""
        return ()

    @property
    def sight_inputs(self) -> tuple[TensorSpec, ...]:
        """What tells what its tokens see around them, before `inputs`; nothing where none looks forward."""
        return (TensorSpec(name=tensors.SEEN_AROUND, dtype="int64", shape=(2, "B", "T")),) if self.looks_ahead else ()

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see, themselves among them; None: all that the model has."""
        return None

    def head_size_of(self, number: int) -> int:
        """Return C of a layer."""
        return self.config.head_size

    def source_of(self, number: int) -> int | None:
        """Return the layer before it whose keys and values a layer reads, having none; None: it has its own."""
        return None

    @property
    def window_tokens(self) -> int | None:
        """The shortest window of its layers; None where all see everything."""
        windows = [window for number in range(self.config.num_layers) if (window := self.window_of(number))]
        return min(windows, default=None)

    @property
    def logit_softcap(self) -> float:
        """The c by which logits x become c tanh(x / c); 0: they stay."""
        return 0.0

    @property
    def embedding_scale(self) -> float:
        """What rows of the table are multiplied by when tokens become embeddings."""
        return 1.0

    def norm(self, dialect: Dialect) -> Module:
        """Return the norm behind the last layer."""
        return RMSNorm(self.config.hidden_size, self.config.rms_norm_eps, dialect)

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of tokens at `position_ids` [*position_axes, B, T], one for each kind of layer, or none."""
        places = position_ids if self.position_parts is None else self._places(op, position_ids, self.position_parts)
        return (rotary_angles(op, places, self.config.rope, self.config.head_size),)

    def _places(self, op: OpBuilder, position_ids: ir.Value, parts: int) -> ir.Value:
        """Return [B, T] float32 from whole positions and these plus parts; the next whole one is one more of both."""
        whole, beyond = (op.Gather(position_ids, axis, axis=0) for axis in (0, 1))
        rest = op.Div(op.Cast(op.Sub(beyond, whole), to=ir.DataType.FLOAT), float(parts))
        return op.Add(op.Cast(whole, to=ir.DataType.FLOAT), rest)

    def states_of(self, number: int) -> tuple[State, ...]:
        """Return what a layer takes and gives back: keys and values, as transformers.js and Optimum name them."""
        config = self.config
        return tuple(
            State(
                input=f"past_key_values.{number}.{part}",
                output=f"present.{number}.{part}",
                dtype="float32",
                shape=("B", config.num_kv_heads, "S", config.head_size),
                group=config.length_groups[number],
                layer=number,
                part=part,
            )
            for part in _PARTS
        )

    @property
    def shared_states(self) -> tuple[State, ...]:
        """States of kind "memory" that all layers read, and that belong to none."""
        return ()

    def shared(self) -> Module | None:
        """Return (shared states, `inputs`) -> values that layers find in `around.shared`, made once; None: none."""
        return None

    @property
    def states(self) -> tuple[State, ...]:
        """What all layers share, and what they take and give back, layer by layer."""
        of_layers = (state for number in range(self.config.num_layers) for state in self.states_of(number))
        return (*self.shared_states, *of_layers)

    @property
    def layers_with_rows(self) -> tuple[int, ...]:
        """The layers that keep a row per token."""
        numbers = range(self.config.num_layers)
        return tuple(number for number in numbers if any(each.kind == "rows" for each in self.states_of(number)))
