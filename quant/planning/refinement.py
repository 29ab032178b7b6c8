"""A decoder's plan made better by what calibration tells of its inputs.

Three things are done to the layers of recipes that ask for it (`Recipe.refines`); docs/decisions/0011 has what was
measured:

- under W8A8, whose input has one step for all channels, the residual stream is turned where norms hand on loud ones,
  and so are other loud inputs, in small blocks (`quant.scaling.rotation`). Blocks of weights have steps of their own,
  and lose more by loud channels spread over all of them;
- an input that is loud then, as that of `down_proj` is, keeps its loudest channels in float, or under 4 bits on a CPU
  stores their weights twice;
- codes are fed the errors of those before them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle.directory import Bundle
from bundle.form import Form
from bundle.manifest import Target
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph, weight_bytes
from quant.calibration.calibrator import calibrate
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning.draft import Draft
from quant.planning.plan import ComponentPlan, LayerPlan
from quant.planning.recipes import RECIPES
from quant.planning.tied_table import with_head
from quant.scaling.rotation import TURNED_CHANNELS, can_turn_input, find_stream, rotate, turn_inputs

Say = Callable[[str], None]

LOUD = 4.0
"""A channel is loud whose peak is this many times the median channel's. Gaussian channels stay below 2."""
QUIET = 2.0
"""Where one is loud, all channels down to this many times the median go with it: more of them cost little more."""
MOST_FLOAT_INPUTS = 64
MOST_FLOAT_BLOCKS = 2
_STEP = 8  # float inputs are counted in eights, so that a plan has few distinct forms
_MOST_SHARE = 1 / 24  # of a layer's inputs: 64 of the 1,536 of SmolLM2-135M's down_proj, 24 of its 576

FED = {("w8a8", 8): "gptq", ("matmul_nbits", 8): "gptq", ("matmul_nbits", 4): "gptq-zeros", ("qdq_int4", 4): "gptq"}
"""What a plain rounding becomes, by method and bits."""
DOUBLING = {"gptq-zeros": "gptq-coded"}
"""What it becomes then on the CPU, where loud inputs are stored twice and scales as codes: fewer bytes and nodes."""
MOST_DOUBLED = 100.0
"""Codes of what codes miss leave a fifteenth of it, which is loud again where a channel is louder than so many times
the median: such a layer keeps its loud inputs in float."""


@contextmanager
def rotated_parent(parent: Bundle, draft: Draft, folder: Path) -> Iterator[Bundle]:
    """Lend the bundle whose weights are rounded: the parent, its decoder rotated where the draft says so.

    Args:
        parent: The fp32 bundle.
        draft: Its refined plan.
        folder: Where a rotated copy may be written; nothing is left of it afterwards.
    """
    turned = frozenset[str]().union(*(plan.turned for plan in draft.plans.values()))
    is_rotated = any(plan.is_rotated for plan in draft.plans.values())
    if not (is_rotated or turned):
        yield parent
        return
    source = parent.manifest.components["decoder"]
    model = open_graph(parent.graph_path("decoder"))
    if is_rotated:
        rotate(model)
    turn_inputs(model, turned)
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


def refine(draft: Draft, source: FeedSource, say: Say, target: Target = "cpu") -> Draft:
    """Return a draft whose plans of the decoder use what calibration tells.

    Args:
        draft: As planned without calibration.
        source: The fp32 bundle and calibration samples.
        say: Told what was found.
        target: Where the variant will run.
    """
    refined = [name for name, plan in draft.plans.items() if _refines(plan)]
    if not refined:
        return draft
    layers = {layer.name for name in refined for layer in draft.plans[name].layers if _fed_form(layer) is not None}
    peaks = calibrate(source, {"decoder": sorted(layers)}, progress=say)["decoder"]
    loudness = {name: Loudness.of(inputs) for name, inputs in peaks.items()}
    graph = open_graph(source.bundle.graph_path("decoder")).graph
    in_w8a8 = frozenset(name for one in refined for name in draft.plans[one].forms_of("w8a8")) & loudness.keys()
    spread = Spread.of(graph, {name: loudness[name] for name in in_w8a8})
    counts = {name: spread.float_inputs(name, each) for name, each in loudness.items()}
    doubled = {name for name, each in loudness.items() if each.ratio <= MOST_DOUBLED} if target == "cpu" else set()
    plans = {
        name: _refined(plan, counts, spread, doubled) if name in refined else plan for name, plan in draft.plans.items()
    }
    forms = [layer.choice.form for name in refined for layer in plans[name].layers if layer.choice.form]
    say(_told({name: each for name, each in loudness.items() if name not in spread.behind_norms}, spread, forms))
    return replace(draft, plans=with_head(plans))


@dataclass(frozen=True)
class Spread:
    """The layers whose loud input channels are spread over others.

    Attributes:
        behind_norms: By turning the residual stream.
        turned: By turning their own inputs, while the model runs.
    """

    behind_norms: frozenset[str]
    turned: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Graph, loudness: Mapping[str, Loudness]) -> Spread:
        """Return what is worth spreading.

        Args:
            graph: The decoder's.
            loudness: Of the inputs of layers in W8A8, which have one step for all channels.
        """
        loud = {name for name, each in loudness.items() if each.ratio >= LOUD}
        stream = find_stream(graph)
        behind = frozenset(reader.name for _, readers in stream.norms for reader in readers) if stream else frozenset()
        rest = loud - behind
        turned = frozenset(
            linear.name for linear in find_linears(graph) if linear.name in rest and can_turn_input(linear)
        )
        return cls(behind if behind & loud else frozenset(), turned)

    def float_inputs(self, layer: str, loudness: Loudness) -> int:
        """Return how many inputs of a layer stay in float all the same."""
        if layer in self.behind_norms:
            return 0
        return loudness.turned_float_inputs if layer in self.turned else loudness.float_inputs


@dataclass(frozen=True)
class Loudness:
    """How unequal the channels of a layer's input are.

    Attributes:
        ratio: The loudest channel's peak over the median channel's.
        float_inputs: How many of them are to stay in float.
        turned_float_inputs: The same where the input is turned: blocks with a channel that is loud even when shared.
    """

    ratio: float
    float_inputs: int
    turned_float_inputs: int = 0

    @classmethod
    def of(cls, inputs: InputStatistics) -> Loudness:
        """Return the loudness of an input whose channels' peaks are known."""
        median = max(float(np.median(inputs.peaks)), float(np.finfo(np.float32).tiny))
        ratios = inputs.peaks / median
        if ratios.max() < LOUD:
            return cls(float(ratios.max()), 0)
        loud = np.flatnonzero(ratios >= LOUD * np.sqrt(TURNED_CHANNELS)) // TURNED_CHANNELS
        of_blocks = TURNED_CHANNELS * min(len(np.unique(loud)), MOST_FLOAT_BLOCKS)
        most = min(MOST_FLOAT_INPUTS, max(_STEP, int(len(ratios) * _MOST_SHARE) // _STEP * _STEP))
        wanted = -(-int((ratios > QUIET).sum()) // _STEP) * _STEP
        return cls(float(ratios.max()), min(most, wanted), of_blocks)


def _told(loudness: Mapping[str, Loudness], spread: Spread, forms: Sequence[Form]) -> str:
    """Return in words which inputs are loud, and what becomes of them."""
    words = []
    if spread.behind_norms:
        words.append(f"rotated, for {len(spread.behind_norms)} layers behind its norms")
    if loudness:
        loudest = max(loudness, key=lambda name: loudness[name].ratio)
        where = " elsewhere" if spread.behind_norms else ""
        words.append(
            f"the loudest input channel{where} is {loudness[loudest].ratio:.0f} times the median one ({loudest})"
        )
    if spread.turned:
        words.append(f"{len(spread.turned)} layers turn their inputs in blocks of {TURNED_CHANNELS}")
    kept = {
        "keep their loudest {span} inputs in float": [form.float_inputs for form in forms if form.float_inputs],
        "store their loudest {span} inputs twice": [form.doubled_inputs for form in forms if form.doubled_inputs],
    }
    for said, counts in kept.items():
        if counts:
            span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            words.append(f"{len(counts)} layers {said.format(span=span)}")
    if not (any(kept.values()) or spread.turned or spread.behind_norms):
        words.append(f"none is {LOUD:g} times, so all inputs are rounded as they are")
    return f"decoder: {'; '.join(words)}"


def _refines(plan: ComponentPlan) -> bool:
    return plan.parent == "decoder" and RECIPES[plan.recipe].refines


def _fed_form(layer: LayerPlan) -> Form | None:
    """Return the form of a layer whose codes are fed errors; None for one that stays as it is."""
    form = layer.choice.form
    if form is None or form.rounding != "rtn" or layer.is_table or layer.copies > 1:
        return None
    fed = FED.get((layer.choice.method, form.bits))
    return None if fed is None else replace(form, rounding=fed)


def _refined(plan: ComponentPlan, loud_inputs: Mapping[str, int], spread: Spread, doubled: Set[str]) -> ComponentPlan:
    layers = tuple(
        _refined_layer(layer, loud_inputs.get(layer.name, 0), DOUBLING if layer.name in doubled else {})
        for layer in plan.layers
    )
    return replace(plan, layers=layers, is_rotated=bool(spread.behind_norms), turned=spread.turned)


def _refined_layer(layer: LayerPlan, loud_inputs: int, doubling: Mapping[str, str]) -> LayerPlan:
    """Return a layer whose codes are fed errors, so many of its inputs kept finer."""
    form = _fed_form(layer)
    if form is None:
        return layer
    block_size = form.block_size or 1
    if form.rounding in doubling and layer.num_inputs % block_size == 0:
        doubled = -(-loud_inputs // block_size) * block_size
        form = replace(form, rounding=doubling[form.rounding], doubled_inputs=doubled)
    else:
        form = replace(form, float_inputs=loud_inputs)
    return replace(layer, choice=replace(layer.choice, form=form))
