from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.planning.draft import Options, make_draft
from quant.planning.refinement import MOST_FLOAT_INPUTS, Loudness, refine, rotated_parent
from quant.quality.evaluation import Evaluation


def loudness(peaks: list[float] | np.ndarray) -> Loudness:
    return Loudness.of(InputStatistics(1, np.asarray(peaks, np.float32)))


def test_inputs_of_equal_channels_keep_none_in_float(rng) -> None:
    assert loudness(np.abs(rng.standard_normal(576)) + 2).float_inputs == 0


@pytest.mark.parametrize(("loud", "expected"), [(1, 8), (8, 8), (9, 16), (30, 32), (200, 64)])
def test_loud_channels_are_counted_in_eights_up_to_a_limit(loud: int, expected: int) -> None:
    peaks = np.ones(1536, np.float32)
    peaks[:loud] = 100
    assert loudness(peaks) == Loudness(100.0, expected)
    assert expected <= MOST_FLOAT_INPUTS


def test_a_narrow_layer_keeps_a_twenty_fourth_of_its_inputs_at_most() -> None:
    peaks = np.ones(576, np.float32)
    peaks[:100] = 100
    assert loudness(peaks).float_inputs == 24


def test_channels_that_never_spoke_make_no_input_loud() -> None:
    assert loudness(np.zeros(64)).float_inputs == 0


def test_the_plan_says_which_layers_keep_inputs_in_float_and_whether_it_is_rotated(
    smolvlm_bundle: Path, asked: type, tmp_path: Path
) -> None:
    parent = open_bundle(smolvlm_bundle)
    samples = Evaluation(questions=[asked(f"word {at}") for at in range(4)])
    for weights, is_rotated in (("int8", True), ("int4", False), ("int8-rtn", False)):
        draft = make_draft(parent, weights, Options(), lambda line: None)
        told: list[str] = []
        with rotated_parent(parent, draft, tmp_path) as source:
            assert (source is not parent) == is_rotated
            found = refine(draft, FeedSource(source, samples), is_rotated, told.append)
        assert not list(tmp_path.iterdir())
        roundings = {layer.choice.form.rounding for layer in found.plans["decoder"].layers if layer.choice.form}
        if weights == "int8-rtn":
            assert found is draft
            continue
        assert roundings == {"gptq" if weights == "int8" else "gptq-zeros"}
        assert ("rotated" in found.plans["decoder"].detail) == is_rotated
        assert any("the loudest input channel is" in line for line in told)
