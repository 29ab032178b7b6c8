"""What was chosen for each layer of a graph, and the rewriting that carries it out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import onnx_ir as ir

from bundle.form import Form
from bundle.manifest import Component, ComponentName, Phase, Scheme
from bundle.report import FormDecision
from quant.calibration.statistics import InputStatistics

if TYPE_CHECKING:
    from quant.planning.survey import Kind

FLOAT32 = "fp32"
"""The method of a layer that keeps its weights."""

_WITH_ZERO_POINTS = ("hqq", "gptq-zeros", "gptq-coded")
_WITH_CODED_SCALES = ("gptq-coded",)
_ROTATED = "the residual stream is rotated: behind its norms no channel is louder than others"
_TURNED = "{number} layers turn their inputs in blocks of 64 channels as they run: loud channels share their loudness"
_SCALE_BYTES = 4  # scales are float32
_HALF_BYTES, _INDEX_BYTES = 2, 8  # of an input in float: a weight for each output, and its number
_STEP_BYTES = 5  # the step of int8 activations, float32, and its zero point
_ROW_PEAK_BYTES = 12  # what W8A8 needs once a graph to find the peaks of rows: an axis and an epsilon


@dataclass(frozen=True)
class Choice:
    """An operator and how it stores weights.

    Attributes:
        method: A name of `quant.weights.table.PASSES`, or "fp32".
        form: None for "fp32".
    """

    method: str
    form: Form | None = None

    @property
    def label(self) -> str:
        """Return method and form in words, such as "matmul_nbits 4-bit b32" or "matmul_nbits 4-bit b32 gptq"."""
        if self.form is None:
            return self.method
        return f"{self.method} {words(self.form)}"


def words(form: Form) -> str:
    """Return a form in words, such as "4-bit b64 gptq"."""
    block = "" if form.block_size is None else f" b{form.block_size}"
    rounding = "" if form.rounding == "rtn" else f" {form.rounding}"
    loud = f" +{form.loud_inputs} {'float' if form.float_inputs else 'doubled'}" if form.loud_inputs else ""
    return f"{form.bits}-bit{block}{rounding}{loud}"


KEPT = Choice(FLOAT32)


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer.

    Attributes:
        name: The weight's.
        choice: Operator and form.
        num_inputs: K of a linear layer, D of a table.
        num_outputs: N of a linear layer, V of a table.
        reason: Half a sentence.
        is_table: Rows are looked up, not multiplied.
        copies: Matrices of this size, of which a row meets few: the experts of a mixture; else 1.
        is_shared: Another graph of the bundle stores its bytes.
        head: The layer of the decoder that a table is rounded with; None: by itself.
        kind: What the layer is to its graph, such as "head".
    """

    name: str
    choice: Choice
    num_inputs: int
    num_outputs: int
    reason: str
    is_table: bool = False
    copies: int = 1
    is_shared: bool = False
    head: str | None = None
    kind: Kind = "linear"

    @property
    def part(self) -> str:
        """Return what the layer is in each block of its model, such as "down_proj"; other kinds than linear by kind."""
        return self.name.removesuffix(".weight").rpartition(".")[2] if self.kind == "linear" else self.kind

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of its weights, 0 where they are another layer's, and of what puts them in their places."""
        own = 0 if self.is_shared else self.copies * bytes_of(self.choice, self.num_inputs, self.num_outputs)
        form = self.choice.form if self.is_table else None
        return own if form is None else own + 4 * self.num_inputs * (form.float_inputs + 2 * form.doubled_inputs)


def bytes_of(choice: Choice, num_inputs: int, num_outputs: int) -> int:
    """Return the bytes that a matrix takes in a form, scales, zero points and offsets with it."""
    form = choice.form
    if form is None:
        return 4 * num_inputs * num_outputs
    if form.bits == 16:
        return 2 * num_inputs * num_outputs
    beside = form.float_inputs * _HALF_BYTES * num_outputs + loud_bytes(form, num_inputs)
    if form.block_size is None:
        zero_points = 0 if choice.method == "gather_rows" else 1
        return num_outputs * (num_inputs + _SCALE_BYTES + zero_points) + _STEP_BYTES + beside
    num_columns = num_inputs + 2 * form.doubled_inputs
    return num_outputs * _row_bytes(form, -(-num_columns // form.block_size), form.block_size) + beside


def loud_bytes(form: Form, num_inputs: int) -> int:
    """Return the bytes of what tells loud inputs from others, a mask and numbers; layers of one input share it."""
    if not form.loud_inputs:
        return 0
    return 4 * num_inputs + _INDEX_BYTES * (form.float_inputs + 2 * form.doubled_inputs)


def _row_bytes(form: Form, blocks: int, block_size: int) -> int:
    """Return the bytes of one output's blocks; a last block counts as whole."""
    scales = blocks + _SCALE_BYTES if form.rounding in _WITH_CODED_SCALES else blocks * _SCALE_BYTES
    codes = blocks * block_size * form.bits // 8 + scales
    if form.rounding == "ternary-planes":
        return 2 * codes
    if form.rounding == "ternary-mean":
        return codes + blocks * _SCALE_BYTES
    return codes + (-(-blocks * form.bits // 8) if form.rounding in _WITH_ZERO_POINTS else 0)


@dataclass(frozen=True)
class ComponentPlan:
    """The choices for one graph.

    Attributes:
        component: What the graph is called.
        recipe: The name in `quant.planning.recipes.RECIPES` that was asked for or follows.
        scheme: What the manifest will say.
        layers: In node order.
        scaling: A name of `quant.scaling.table.SCALINGS`; None where activations are left as they are.
        source: The parent's graph that is rewritten, where that has another name.
        phase: When the graph runs, where another one has its role.
        decisions: Why layers have one of several forms; plans of the same layers are equal whatever the times were.
        is_rotated: The residual stream is turned before weights are rounded.
        turned: Layers whose inputs are turned while the model runs.
    """

    component: ComponentName
    recipe: str
    scheme: Scheme
    layers: tuple[LayerPlan, ...]
    scaling: str | None = None
    source: ComponentName | None = None
    phase: Phase = "any"
    decisions: tuple[FormDecision, ...] = field(default=(), compare=False)
    is_rotated: bool = False
    turned: frozenset[str] = frozenset()

    @property
    def parent(self) -> ComponentName:
        """Return the parent's graph that is rewritten."""
        return self.source or self.component

    def forms_of(self, method: str) -> dict[str, Form]:
        """Return the layers of one method as its pass takes them."""
        chosen = ((plan.name, plan.choice) for plan in self.layers)
        return {name: each.form for name, each in chosen if each.method == method and each.form is not None}

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods used, float32 left out."""
        return tuple(dict.fromkeys(plan.choice.method for plan in self.layers if plan.choice.form is not None))

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of all planned layers."""
        once = _ROW_PEAK_BYTES if "w8a8" in self.methods else 0
        return once + sum(plan.stored_bytes for plan in self.layers)

    @property
    def fp32_bytes(self) -> int:
        """Return the bytes of all planned layers as exported."""
        return sum(plan.copies * bytes_of(KEPT, plan.num_inputs, plan.num_outputs) for plan in self.layers)

    def with_layers_of(self, other: ComponentPlan, names: Collection[str]) -> ComponentPlan:
        """Return the plan with the named layers as another plan has them, which stores them."""
        theirs = {layer.name: replace(layer, is_shared=True) for layer in other.layers if layer.name in names}
        return replace(self, layers=tuple(theirs.get(layer.name, layer) for layer in self.layers))

    def only(self, names: Collection[str]) -> ComponentPlan:
        """Return the plan of the named layers alone."""
        return replace(self, layers=tuple(layer for layer in self.layers if layer.name in names))

    def without(self, names: Collection[str]) -> ComponentPlan:
        """Return the plan of all other layers."""
        return replace(self, layers=tuple(layer for layer in self.layers if layer.name not in names))

    def groups(self) -> list[tuple[str, str, list[LayerPlan]]]:
        """Return each distinct choice as label and reason, and the layers that have it."""

        def choice_of(plan: LayerPlan) -> tuple[str, str]:
            return plan.choice.label, plan.reason

        return [(*choice, list(same)) for choice, same in groupby(sorted(self.layers, key=choice_of), key=choice_of)]

    @property
    def detail(self) -> str:
        """Return one line per distinct choice: how many layers, what, why; and one for each kind of rotation."""
        lines = [f"{len(layers)} x {label}: {reason}" for label, reason, layers in self.groups()]
        if self.is_rotated:
            lines.append(_ROTATED)
        if self.turned:
            lines.append(_TURNED.format(number=len(self.turned)))
        return "\n".join(lines)


def apply_plan(model: ir.Model, plan: ComponentPlan, inputs: Mapping[str, InputStatistics] | None = None) -> None:
    """Rewrite a graph in place as planned.

    Args:
        model: Of float32 weights.
        plan: For this graph.
        inputs: Weight name to calibration statistics, where the plan needs them.
    """
    from quant.weights.table import load_pass

    if plan.scaling is not None:
        from quant.scaling.table import load_scaling

        forms = {name: form for method in plan.methods for name, form in plan.forms_of(method).items()}
        inputs = load_scaling(plan.scaling)(model, forms, inputs or {})
    for method in plan.methods:
        load_pass(method)(plan.forms_of(method), inputs)(model)


def planned(component: Component, plan: ComponentPlan, weight_bytes: int) -> Component:
    """Return a component's manifest entry after its plan was applied."""
    written = {"file": f"{plan.component}.onnx", "phase": plan.phase, "weight_bytes": weight_bytes}
    return component.model_copy(update={**written, "scheme": plan.scheme, "detail": plan.detail})
