"""What each layer of a large decoder costs in each form, from a trial for each group of layers and not for each of all.

Layers of one part at a like depth ("down_proj" of the first sixth, say) are rounded together, and what the answers lose
is shared among them by the error of their outputs, tr(dW G dW^T). What another form would lose follows from its own
error: small errors add up in the loss, to which they are in proportion. So a decoder of 211 layers in four forms takes
some forty trials where it took 844.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import ComponentName
from bundle.report import LayerSensitivity
from graphs.layers import Float32, Linear
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning.sensitivity import Probe, Progress, fit_time, stored

NUM_DEPTHS = 6
"""Groups that the layers of one part are in."""


def measure_in_groups(
    source: FeedSource,
    component: ComponentName,
    forms: Mapping[str, Sequence[Form]],
    *,
    inputs: Mapping[str, InputStatistics],
    max_seconds: float,
    progress: Progress,
) -> list[LayerSensitivity]:
    """Return what `quant.planning.sensitivity.measure_sensitivity` does, estimated.

    Args:
        source: The fp32 bundle and the samples it is run on.
        component: The graph.
        forms: The forms to try by weight name; the first of each is rounded in a trial.
        inputs: What meets the layers, with Grams, by weight name.
        max_seconds: Take fewer samples where all of them would take longer.
        progress: Called with an estimate, and for each group.

    Raises:
        QuantizationError: As `measure_sensitivity`, or a layer without a Gram.
    """
    probe = Probe(source, component)
    if missing := [name for name in forms if name not in inputs or inputs[name].gram is None]:
        raise QuantizationError(f"{component}: what meets {', '.join(missing)} was not recorded")
    groups = _groups(list(forms))
    fit_time(probe, len(groups), max_seconds)
    progress(f"{component}: {len(groups)} trials of groups of layers on {probe.num_samples} samples")
    table = []
    for at, names in enumerate(groups, start=1):
        table += _measured(probe, component, {name: forms[name] for name in names}, inputs)
        progress(f"{component}: {at} of {len(groups)} trials done")
    return table


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Return the layers by part and depth; one that stands in no numbered block is a group of its own."""
    blocks = {name: next((int(piece) for piece in name.split(".") if piece.isdigit()), None) for name in names}
    num_blocks = 1 + max((block for block in blocks.values() if block is not None), default=0)
    found: defaultdict[tuple[str, int | None], list[str]] = defaultdict(list)
    for name, block in blocks.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        found[part, None if block is None else block * NUM_DEPTHS // num_blocks].append(name)
    return list(found.values())


def _measured(
    probe: Probe,
    component: ComponentName,
    forms: Mapping[str, Sequence[Form]],
    inputs: Mapping[str, InputStatistics],
) -> list[LayerSensitivity]:
    tried: dict[str, Float32] = {}
    errors: dict[tuple[str, Form], tuple[float, int]] = {}
    for name, wanted in forms.items():
        linear = probe.linears[name]
        for form in wanted:
            rows, weight_bytes = stored(linear, form, inputs)
            errors[name, form] = _output_error(linear, rows, inputs[name]), weight_bytes
            if form == wanted[0]:
                tried[name] = rows
    whole = sum(errors[name, wanted[0]][0] for name, wanted in forms.items())
    loss = probe.loss(tried)
    return [
        LayerSensitivity(
            component=component,
            layer=name,
            form=form,
            measure=probe.measure,
            loss=loss * error / whole if whole else 0.0,
            num_samples=probe.num_samples,
            weight_bytes=weight_bytes,
            fp32_bytes=4 * probe.linears[name].num_inputs * probe.linears[name].num_outputs,
        )
        for (name, form), (error, weight_bytes) in errors.items()
    ]


def _output_error(linear: Linear, rows: Float32, inputs: InputStatistics) -> float:
    """Return tr(dW G dW^T), the mean squared error of a layer's outputs."""
    wrong = linear.rows() - rows
    return float(np.sum((wrong @ np.asarray(inputs.gram)) * wrong, dtype=np.float64))
