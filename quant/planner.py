"""Which layer gets which weight scheme, and why.

The operator follows the number of rows M that meet a weight. Many rows (images, texts) want W8A8: integer products cost
a third of float32 ones. One row per step (decoding) wants the fewest bytes, which is MatMulNBits. Milliseconds for a
product of M x K by K x N on an AMD EPYC (Zen 5, avx512_vnni, no AMX), ONNX Runtime 1.31.1, one thread of a shared
machine, median of 30:

    768 x 3072   float32    W8A8   8-bit b32   8-bit b128   4-bit b32   4-bit b128
    M = 1           0.33    0.12        0.11         0.09        0.07         0.07
    M = 8           0.56    0.23        0.25         0.20        0.24         0.18
    M = 77           2.4    0.92         1.9          1.6         2.1          1.5
    M = 256          7.0     2.2         6.0          7.9         8.6          4.8

Made by `python -m quant.kernel_times`; read ratios, not digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.manifest import Component, ComponentName, Manifest, Scheme
from quant.layers import Linear, Table, find_linears, find_tables
from quant.weights.weight_pass import Form

_Layer = TypeVar("_Layer", Linear, Table)

FLOAT32 = "fp32"
"""The method of a layer that keeps its weights."""

_MANY_ROWS = "many rows meet each weight, where integer products run 2 to 3 times as fast as float32"
_MANY_ROWS_FEWER_BITS = (
    "8 bits, not {bits}: many rows meet each weight, where fewer bits are slower than W8A8 and coarser"
)
_ONE_ROW = "decoding reads every weight for one row, so fewer bytes are less time"
_HEAD = "the vocabulary's scores decide the token, so they keep 8 bits"
_LOOKED_UP = "rows are decoded as they are looked up"
_NOT_IN_DIALECT = "the portable dialect has no operator for it"
_CONSTANT = "looked up once with constant ids"


@dataclass(frozen=True)
class Recipe:
    """What `--weights NAME` asks of a decoder; encoders get W8A8 under every recipe.

    Attributes:
        bits: Of the linear layers.
        block_sizes: Preferred first; the first that divides K is taken, else the last.
        scheme: What the manifest calls the decoder.
    """

    bits: int
    block_sizes: tuple[int, ...]
    scheme: Scheme


RECIPES = {
    "int8": Recipe(bits=8, block_sizes=(128, 64, 32), scheme="int8-weight-only"),
    "int4": Recipe(bits=4, block_sizes=(32,), scheme="int4"),
}
_W8A8 = Form(8)
_HEAD_BITS = 8
_HEAD_BLOCKS = (128, 64, 32)
_TABLE_BLOCKS = (128, 64, 32, 16)


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer.

    Attributes:
        name: The weight's.
        method: A name of `quant.weights.table.PASSES`, or "fp32".
        form: None for "fp32".
        num_inputs: K of a linear layer, V of a table.
        num_outputs: N of a linear layer, D of a table.
        reason: Half a sentence.
    """

    name: str
    method: str
    form: Form | None
    num_inputs: int
    num_outputs: int
    reason: str

    @property
    def label(self) -> str:
        """Return method and form in words, such as "matmul_nbits 4-bit b32"."""
        if self.form is None:
            return self.method
        block = "" if self.form.block_size is None else f" b{self.form.block_size}"
        return f"{self.method} {self.form.bits}-bit{block}"


@dataclass(frozen=True)
class ComponentPlan:
    """The choices for one graph.

    Attributes:
        component: Its name.
        scheme: What the manifest will say.
        layers: In node order.
    """

    component: ComponentName
    scheme: Scheme
    layers: tuple[LayerPlan, ...]

    def forms_of(self, method: str) -> dict[str, Form]:
        """Return the layers of one method as its pass takes them."""
        return {plan.name: plan.form for plan in self.layers if plan.method == method and plan.form is not None}

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods used, float32 left out."""
        return tuple(dict.fromkeys(plan.method for plan in self.layers if plan.form is not None))

    @property
    def detail(self) -> str:
        """Return one line per distinct choice: how many layers, what, why."""
        ordered = sorted(self.layers, key=lambda plan: (plan.label, plan.reason))
        groups = [list(group) for _, group in groupby(ordered, key=lambda plan: (plan.label, plan.reason))]
        return "\n".join(f"{len(group)} x {group[0].label}: {group[0].reason}" for group in groups)


def recipe_named(weights: str) -> Recipe:
    """Return what a `--weights` value asks for.

    Raises:
        QuantizationError: Nothing has that name.
    """
    if weights not in RECIPES:
        raise QuantizationError(f"unknown weights {weights!r}; known: {', '.join(RECIPES)}")
    return RECIPES[weights]


def require_float(manifest: Manifest) -> None:
    """Check that a bundle still holds the weights of its checkpoint.

    Raises:
        QuantizationError: A component is quantized already; its rounding errors would be rounded again.
    """
    done = [f"{name} is {part.scheme}" for name, part in manifest.components.items() if part.scheme != FLOAT32]
    if done:
        raise QuantizationError(
            f"{manifest.name} is quantized already ({', '.join(done)}). Quantize the fp32 bundle that it was made from."
        )


def plan_component(name: ComponentName, graph: ir.Graph, manifest: Manifest, recipe: Recipe) -> ComponentPlan:
    """Return the choice for every linear layer and embedding table of a graph.

    Raises:
        QuantizationError: The dialect has no operator for a decoder's weights, or no layer was found.
    """
    linears, tables = _distinct(find_linears(graph)), _distinct(find_tables(graph))
    if not linears and not tables:
        raise QuantizationError(f"{name}: no linear layer or embedding table was found; nothing can be made smaller")
    if name == "decoder":
        layers = [_plan_decoder_linear(linear, manifest, recipe) for linear in linears]
    else:
        layers = [_plan_encoder_linear(linear, recipe) for linear in linears]
    layers += [_plan_table(table, graph, manifest) for table in tables]
    return ComponentPlan(name, _scheme(name, layers, recipe), tuple(layers))


def apply_plan(model: ir.Model, plan: ComponentPlan) -> None:
    """Rewrite a graph in place as planned."""
    from quant.weights.table import load_pass

    for method in plan.methods:
        load_pass(method)(plan.forms_of(method))(model)


def planned(component: Component, plan: ComponentPlan, weight_bytes: int) -> Component:
    """Return a component's manifest entry after its plan was applied."""
    return component.model_copy(update={"scheme": plan.scheme, "detail": plan.detail, "weight_bytes": weight_bytes})


def _plan_encoder_linear(linear: Linear, recipe: Recipe) -> LayerPlan:
    reason = _MANY_ROWS if recipe.bits >= _W8A8.bits else _MANY_ROWS_FEWER_BITS.format(bits=recipe.bits)
    return LayerPlan(linear.name, "w8a8", _W8A8, linear.num_inputs, linear.num_outputs, reason)


def _plan_decoder_linear(linear: Linear, manifest: Manifest, recipe: Recipe) -> LayerPlan:
    if manifest.dialect != "contrib":
        raise QuantizationError(
            f"decoder: {recipe.bits}-bit weights need MatMulNBits, which the {manifest.dialect} dialect lacks; "
            "export the checkpoint with --dialect contrib"
        )
    is_head = manifest.decoder is not None and linear.num_outputs == manifest.decoder.vocab_size
    bits, block_sizes = (_HEAD_BITS, _HEAD_BLOCKS) if is_head else (recipe.bits, recipe.block_sizes)
    form = Form(bits, _first_divisor(block_sizes, linear.num_inputs))
    reason = _HEAD if is_head and recipe.bits < _HEAD_BITS else _ONE_ROW
    return LayerPlan(linear.name, "matmul_nbits", form, linear.num_inputs, linear.num_outputs, reason)


def _plan_table(table: Table, graph: ir.Graph, manifest: Manifest) -> LayerPlan:
    size = table.num_rows, table.width
    if table.ids not in graph.inputs:
        return LayerPlan(table.name, FLOAT32, None, *size, _CONSTANT)
    if manifest.dialect != "contrib":
        return LayerPlan(table.name, FLOAT32, None, *size, _NOT_IN_DIALECT)
    return LayerPlan(table.name, "gather_int8", Form(8, _first_divisor(_TABLE_BLOCKS, table.width)), *size, _LOOKED_UP)


def _scheme(name: ComponentName, layers: Sequence[LayerPlan], recipe: Recipe) -> Scheme:
    if all(plan.form is None for plan in layers):
        return "fp32"
    if name == "decoder":
        return recipe.scheme
    return "int8" if any(plan.method == "w8a8" for plan in layers) else "int8-weight-only"


def _first_divisor(block_sizes: Sequence[int], size: int) -> int:
    return next((block_size for block_size in block_sizes if size % block_size == 0), block_sizes[-1])


def _distinct(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return one layer of each weight."""
    return list({layer.name: layer for layer in layers}.values())
