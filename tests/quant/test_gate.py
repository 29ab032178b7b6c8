from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.directory import open_bundle, read_manifest, seal
from bundle.errors import GateError, QuantizationError
from quant.gate import LIMITS, bootstrap, cosines, judge, kl_divergences, top1_agreements
from quant.planner import RECIPES


def test_kl_of_two_coins_is_the_closed_form() -> None:
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    np.testing.assert_allclose(kl_divergences(fair, biased), [expected], rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50))
def test_kl_is_never_negative_and_blind_to_a_constant(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((5, 9)) * 10, rng.standard_normal((5, 9)) * 10
    assert (kl_divergences(a, b) >= -1e-12).all()
    np.testing.assert_allclose(kl_divergences(a, a + shift), 0, atol=1e-9)


def test_kl_of_huge_logits_is_finite() -> None:
    assert np.isfinite(kl_divergences([[1e4, -1e4]], [[1e4, 1e4]])).all()


def test_agreement_counts_equal_choices() -> None:
    assert top1_agreements([[1, 2], [3, 0], [0, 1]], [[0, 5], [0, 1], [2, 1]]).tolist() == [1, 0, 0]


def test_cosines_of_equal_opposite_and_silent_rows() -> None:
    rows = np.array([[1.0, 2.0], [1.0, 0.0], [3.0, 4.0]])
    found = np.array([[2.0, 4.0], [-5.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosines(rows, found), [1, -1, 0])


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    intervals = [bootstrap(rng.random(60) < 0.3, resamples=400, seed=i) for i in range(200)]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in intervals])
    # 95 % nominal; the percentile method covers a little less at n = 60, and 200 trials have a deviation of 1.5 %.
    assert 0.89 <= covered <= 0.99


def test_an_interval_repeats_itself() -> None:
    values = np.random.default_rng(0).random(30)
    assert bootstrap(values) == bootstrap(values)


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = bootstrap([2.0] * 10)
    assert (interval.mean, interval.low, interval.high, interval.n) == (2.0, 2.0, 2.0, 10)


def test_no_values_are_refused() -> None:
    with pytest.raises(QuantizationError, match="at least one sample"):
        bootstrap([])


@pytest.mark.parametrize(
    ("measure", "value", "passed"),
    [
        ("kl_mean", 0.02, True),
        ("kl_mean", 0.021, False),
        ("top1_agreement", 0.98, True),
        ("top1_agreement", 0.97, False),
        ("kl_mean", float("nan"), False),
        ("cosine_mean", float("nan"), False),
    ],
)
def test_a_value_at_its_limit_passes_and_nothing_beyond_or_undefined(measure: str, value: float, passed: bool) -> None:
    assert judge(measure, value, 5, "int8").passed is passed


def test_a_gate_names_what_was_measured() -> None:
    gate = judge("cosine_mean", 0.5, 7, "int4", of="image")
    assert (gate.name, gate.n, gate.direction, gate.passed) == ("cosine_mean/image", 7, "min", False)


def test_a_part_with_a_limit_of_its_own_is_held_to_that() -> None:
    assert judge("canary_cosine", 0.9, 1, "int4", of="decoder").passed
    assert not judge("canary_cosine", 0.9, 1, "int4", of="vision_encoder").passed


def test_a_measure_without_a_limit_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no limit is set for charm of int8"):
        judge("charm", 1.0, 1, "int8")


def test_every_recipe_has_every_limit() -> None:
    assert LIMITS.keys() == RECIPES.keys()
    assert len({frozenset(limits) for limits in LIMITS.values()}) == 1


def test_a_bundle_whose_measure_is_undefined_is_refused_by_that_gate(clip_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_bundle, tmp_path / "variant")
    gate = judge("kl_mean", float("nan"), 5, "int8")
    seal(folder, read_manifest(folder).model_copy(update={"gates": (gate,)}))
    with pytest.raises(GateError, match="kl_mean nan"):
        open_bundle(folder)
