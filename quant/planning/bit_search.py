"""Bits where a decoder needs them: a plan raised layer by layer until it keeps a limit of bytes or of loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.report import LayerSensitivity
from quant.calibration.calibrator import calibrate
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning.budget import BitPlan, choose
from quant.planning.grouped_losses import measure_in_groups
from quant.planning.plan import KEPT, Choice, ComponentPlan, LayerPlan
from quant.planning.sensitivity import measure_sensitivity
from quant.rounding.table import load_rounding

MOST_SECONDS = 900.0
"""Of one search. A decoder of 200 layers takes about that with the fewest samples that say something."""

MOST_ALONE = 64
"""Layers that are each tried alone, in every form; where there are more, groups of them are."""

_LADDER = ((4, (64, 32)), (8, (128, 64, 32)))
"""What MatMulNBits of fewer bits may be raised to: (bits, blocks, the first that divides K); float32 comes last."""
_COARSE_BLOCK = 64
_SEARCHED = ("matmul_nbits", "qdq_int4", "w8a8")
_RAISED = "raised from {label}: a byte buys more here than elsewhere"


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        plan: Of the decoder.
        table: One row per layer and form tried.
        predicted_kl: The sum of the chosen forms' losses, in nats.
    """

    plan: ComponentPlan
    table: tuple[LayerSensitivity, ...]
    predicted_kl: float


def search_bits(
    plan: ComponentPlan,
    source: FeedSource,
    *,
    max_bytes: int | None,
    max_kl: float | None,
    say: Callable[[str], None],
) -> Found:
    """Return a decoder's plan with some layers in more bits than planned.

    Args:
        plan: Of the fewest bits that a layer may have.
        source: The fp32 bundle and calibration samples.
        max_bytes: For the planned layers; None: `max_kl` limits.
        max_kl: Predicted, mean over answer positions, in nats.
        say: Told of the progress.

    Raises:
        QuantizationError: A plan with scaled inputs, samples that lack, or a limit that no plan keeps.
    """
    if plan.scaling is not None:
        raise QuantizationError(
            f"{plan.recipe} changes weights before it rounds them, which the search for bits does not follow; "
            "take int4, int4-gptq, int8 or a ternary recipe with --max-bytes or --max-kl"
        )
    layers = {layer.name: layer for layer in plan.layers if layer.choice.method in _SEARCHED}
    forms = {name: _forms(layer) for name, layer in layers.items()}
    in_groups = len(layers) > MOST_ALONE
    measure = measure_in_groups if in_groups else measure_sensitivity
    table = measure(
        source,
        plan.component,
        forms,
        inputs=_inputs(plan, source, forms, say, wants_all=in_groups),
        max_seconds=MOST_SECONDS,
        progress=say,
    )
    rest = plan.stored_bytes - sum(layer.stored_bytes for layer in layers.values())
    chosen = choose(table, max_bytes=None if max_bytes is None else max_bytes - rest, max_loss=max_kl)
    return Found(_raised(plan, chosen), tuple(table), chosen.loss)


def _forms(layer: LayerPlan) -> list[Form]:
    """Return the forms that a layer may have, its planned one first."""
    planned = layer.choice.form
    if planned is None:
        return []
    if planned.rounding == "gptq-coded":
        return _coded_forms(layer, planned)
    forms = [planned]
    if layer.choice.method == "matmul_nbits":
        for bits, blocks in _LADDER:
            if bits > planned.bits:
                block = next((size for size in blocks if layer.num_inputs % size == 0), blocks[0])
                forms.append(Form(bits, block))
    return forms


def _coded_forms(layer: LayerPlan, planned: Form) -> list[Form]:
    """Return the forms of a layer with scales in codes, the planned one first: none doubled, larger blocks, 8 bits."""
    plain = replace(planned, doubled_inputs=0)
    others = [plain, replace(plain, block_size=_COARSE_BLOCK), Form(8, _COARSE_BLOCK, planned.rounding)]
    fitting = [form for form in others if form.block_size and layer.num_inputs % form.block_size == 0]
    return list(dict.fromkeys([planned, *fitting]))


def _inputs(
    plan: ComponentPlan,
    source: FeedSource,
    forms: Mapping[str, list[Form]],
    say: Callable[[str], None],
    *,
    wants_all: bool,
) -> dict[str, InputStatistics]:
    """Return Grams of the layers whose roundings ask for them, or of all, held at once."""
    wanting = {
        name
        for name, tried in forms.items()
        if wants_all or any(load_rounding(form.rounding).needs_gram for form in tried)
    }
    return calibrate(source, {plan.component: wanting}, grams=True, progress=say)[plan.component] if wanting else {}


def _raised(plan: ComponentPlan, chosen: BitPlan) -> ComponentPlan:
    forms = chosen.forms[plan.component]
    layers = tuple(_with_form(layer, forms[layer.name]) if layer.name in forms else layer for layer in plan.layers)
    return plan if layers == plan.layers else replace(plan, layers=layers, scheme="mixed")


def _with_form(layer: LayerPlan, form: Form | None) -> LayerPlan:
    if form == layer.choice.form:
        return layer
    choice = KEPT if form is None else Choice(layer.choice.method, form)
    return replace(layer, choice=choice, reason=_RAISED.format(label=layer.choice.label))
