"""A decoder's plan made better by what calibration tells of its inputs.

Three things are done to the layers of recipes that ask for it (`Recipe.refines`); docs/decisions/0011 has what was
measured:

- under W8A8, whose input has one step for all channels, the residual stream is turned, so that norms hand on no loud
  channel (`quant.scaling.rotation`). Blocks have steps of their own, and lose more by loud channels spread over all of
  them than by loud channels;
- an input that is loud then, as that of `down_proj` is, keeps its loudest channels in float;
- codes are fed the errors of those before them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bundle.directory import Bundle
from bundle.form import Form
from bundle.manifest import ComponentName
from graphs.store import open_graph, save_graph, weight_bytes
from quant.calibration.calibrator import calibrate
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning.draft import Draft
from quant.planning.plan import ComponentPlan, LayerPlan
from quant.planning.recipes import RECIPES
from quant.scaling.rotation import rotate

Say = Callable[[str], None]

LOUD = 4.0
"""A channel is loud whose peak is this many times the median channel's. Gaussian channels stay below 2."""
QUIET = 2.0
"""Where one is loud, all channels down to this many times the median go with it: more of them cost little more."""
MOST_FLOAT_INPUTS = 64
_STEP = 8  # float inputs are counted in eights, so that a plan has few distinct forms
_MOST_SHARE = 1 / 24  # of a layer's inputs: 64 of the 1,536 of SmolLM2-135M's down_proj, 24 of its 576

FED = {("w8a8", 8): "gptq", ("matmul_nbits", 8): "gptq", ("matmul_nbits", 4): "gptq-zeros", ("qdq_int4", 4): "gptq"}
"""What a plain rounding becomes, by method and bits."""
_ROTATED = "the residual stream is rotated: no channel behind a norm is louder than others"


@contextmanager
def rotated_parent(parent: Bundle, draft: Draft, folder: Path) -> Iterator[Bundle]:
    """Lend the parent, its decoder rotated where the draft's plans are refined and it has a stream to rotate.

    Args:
        parent: The fp32 bundle.
        draft: Its plan. Only W8A8 is worth a rotation.
        folder: Where a rotated copy may be written; it is empty again afterwards.
    """
    if not any(_refines(plan) and "w8a8" in plan.methods for plan in draft.plans.values()):
        yield parent
        return
    source = parent.manifest.components["decoder"]
    model = open_graph(parent.graph_path("decoder"))
    if not rotate(model):
        yield parent
        return
    copy = folder / "rotated"
    copy.mkdir()
    try:
        save_graph(model, copy / source.file)
        written = source.model_copy(update={"weight_bytes": weight_bytes(model)})
        components = {**parent.manifest.components, "decoder": written}
        manifest = parent.manifest.model_copy(update={"components": components})
        yield _OtherDecoder(parent.directory, manifest, copy)
    finally:
        shutil.rmtree(copy)


@dataclass(frozen=True)
class _OtherDecoder(Bundle):
    """A bundle whose decoder lies elsewhere.

    Attributes:
        elsewhere: The folder of `decoder.onnx` and its weights.
    """

    elsewhere: Path

    def path(self, file: str) -> Path:
        """Return where a file lies."""
        found = super().path(file)
        return self.elsewhere / file if file == self.manifest.components["decoder"].file else found


def refine(draft: Draft, source: FeedSource, is_rotated: bool, say: Say) -> Draft:
    """Return a draft whose plans of the decoder use what calibration tells.

    Args:
        draft: As planned without calibration.
        source: The bundle whose weights will be rounded, rotated if it could be, and calibration samples.
        is_rotated: Whether its decoder is.
        say: Told what was found.
    """
    refined = {name: plan for name, plan in draft.plans.items() if _refines(plan)}
    if not refined:
        return draft
    layers = {layer.name for plan in refined.values() for layer in plan.layers if _fed_form(layer) is not None}
    peaks = calibrate(source, {"decoder": sorted(layers)}, progress=say)["decoder"]
    loudness = {name: Loudness.of(inputs) for name, inputs in peaks.items()}
    say(_told(loudness))
    plans = {
        name: replace(_refined(plan, loudness), notes=(_ROTATED,) if is_rotated else ()) if name in refined else plan
        for name, plan in draft.plans.items()
    }
    return replace(draft, plans=_with_head(plans))


@dataclass(frozen=True)
class Loudness:
    """How unequal the channels of a layer's input are.

    Attributes:
        ratio: The loudest channel's peak over the median channel's.
        float_inputs: How many of them are to stay in float.
    """

    ratio: float
    float_inputs: int

    @classmethod
    def of(cls, inputs: InputStatistics) -> Loudness:
        """Return the loudness of an input whose channels' peaks are known."""
        median = max(float(np.median(inputs.peaks)), float(np.finfo(np.float32).tiny))
        ratios = inputs.peaks / median
        if ratios.max() < LOUD:
            return cls(float(ratios.max()), 0)
        most = min(MOST_FLOAT_INPUTS, max(_STEP, int(len(ratios) * _MOST_SHARE) // _STEP * _STEP))
        wanted = -(-int((ratios > QUIET).sum()) // _STEP) * _STEP
        return cls(float(ratios.max()), min(most, wanted))


def _told(loudness: Mapping[str, Loudness]) -> str:
    """Return in words which inputs are loud."""
    loudest = max(loudness, key=lambda name: loudness[name].ratio)
    counts = [each.float_inputs for each in loudness.values() if each.float_inputs]
    first = f"decoder: the loudest input channel is {loudness[loudest].ratio:.0f} times the median one ({loudest})"
    if not counts:
        return f"{first}; none is {LOUD:g} times, so no layer keeps inputs in float"
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{first}; {len(counts)} of {len(loudness)} layers keep their loudest {span} inputs in float"


def _refines(plan: ComponentPlan) -> bool:
    return plan.parent == "decoder" and RECIPES[plan.recipe].refines


def _fed_form(layer: LayerPlan) -> Form | None:
    """Return the form of a layer whose codes are fed errors; None for one that stays as it is."""
    form = layer.choice.form
    if form is None or form.rounding != "rtn" or layer.is_table or layer.copies > 1:
        return None
    fed = FED.get((layer.choice.method, form.bits))
    return None if fed is None else replace(form, rounding=fed)


def _refined(plan: ComponentPlan, loudness: Mapping[str, Loudness]) -> ComponentPlan:
    return replace(plan, layers=tuple(_refined_layer(layer, loudness) for layer in plan.layers))


def _refined_layer(layer: LayerPlan, loudness: Mapping[str, Loudness]) -> LayerPlan:
    form = _fed_form(layer)
    if form is None or layer.name not in loudness:
        return layer
    form = replace(form, float_inputs=loudness[layer.name].float_inputs)
    return replace(layer, choice=replace(layer.choice, form=form))


def _with_head(plans: Mapping[ComponentName, ComponentPlan]) -> dict[ComponentName, ComponentPlan]:
    """Return the plans with a tied table in the form that its head has now."""
    heads = {layer.name: layer.choice.form for layer in plans["decoder"].layers}
    tables = plans.get("embed_tokens")
    if tables is None:
        return dict(plans)
    layers = tuple(
        replace(layer, choice=replace(layer.choice, form=heads[layer.head])) if layer.head in heads else layer
        for layer in tables.layers
    )
    return {**plans, "embed_tokens": replace(tables, layers=layers)}
