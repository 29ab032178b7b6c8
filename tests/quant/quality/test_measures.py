from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import QuantizationError
from quant.quality.measures import (
    Likeness,
    bootstrap,
    clear_choices,
    cosines,
    first_difference,
    grouped_bootstrap,
    kl_divergences,
    negative_log_likelihoods,
    top1_agreements,
)


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


def test_nll_equals_torch_cross_entropy(rng: np.random.Generator) -> None:
    import torch

    logits, ids = rng.standard_normal((6, 11)) * 5, [3, 0, 10, 3, 7, 1]
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(ids), reduction="none")
    np.testing.assert_allclose(negative_log_likelihoods(logits, ids), expected.numpy(), rtol=1e-12)


def test_agreement_counts_equal_choices() -> None:
    assert top1_agreements([[1, 2], [3, 0], [0, 1]], [[0, 5], [0, 1], [2, 1]]).tolist() == [1, 0, 0]


def test_a_choice_is_clear_where_the_first_is_half_as_likely_again_as_the_second() -> None:
    odds = np.log([[1.4, 1, 0.1], [1, 1.49, 0.1], [0.1, 1, 1.51], [1, 1, 1]]) + 7
    assert clear_choices(odds).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("expected", "found", "at"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([1, 2], [], 0), ([], [], None)],
)
def test_replies_part_at_their_first_different_token_or_end(expected: list[int], found: list[int], at: object) -> None:
    assert first_difference(expected, found) == at


def test_cosines_of_equal_opposite_and_silent_rows() -> None:
    rows = np.array([[1.0, 2.0], [1.0, 0.0], [3.0, 4.0]])
    found = np.array([[2.0, 4.0], [-5.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosines(rows, found), [1, -1, 0])


def likeness(expected: np.ndarray, found: np.ndarray) -> Likeness:
    result = Likeness()
    for pair in zip(expected, found, strict=True):
        result.add(*pair)
    return result


def test_likeness_equals_numpy_on_centred_rows(rng: np.random.Generator) -> None:
    a = rng.standard_normal((20, 6)) + 3
    b = a + 0.3 * rng.standard_normal((20, 6))
    found, (p, q) = likeness(a, b), (a - a.mean(axis=0), b - b.mean(axis=0))
    assert found.correlation == pytest.approx(np.corrcoef(p.ravel(), q.ravel())[0, 1], abs=1e-12)
    assert found.spread == pytest.approx(np.linalg.norm(q) / np.linalg.norm(p), abs=1e-12)
    np.testing.assert_allclose(found.cosines, cosines(a, b))


def test_rows_that_all_equal_the_parents_mean_have_cosines_near_one_and_no_correlation(
    rng: np.random.Generator,
) -> None:
    rows = rng.standard_normal((50, 8)) + 20  # a large common part, as encoders' features have
    found = likeness(rows, np.tile(rows.mean(axis=0), (50, 1)))
    assert found.cosines.min() > 0.99
    assert (found.correlation, found.spread) == (0, 0)


def test_other_inputs_outputs_have_no_correlation(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((400, 32)) + 2
    # Rolled by one: independent pairs, so the correlation is 0 within 1 / sqrt(400 x 32) = 0.009; 5 deviations.
    assert abs(likeness(rows, np.roll(rows, 1, axis=0)).correlation) < 0.045


def test_likeness_is_undefined_where_the_parent_says_the_same_of_all() -> None:
    same = likeness(np.ones((3, 2)), np.eye(3, 2))
    assert same.correlation is None
    assert same.spread is None
    assert Likeness().correlation is None


def test_inputs_of_different_numbers_of_rows_are_set_apart_by_their_mean_rows(rng: np.random.Generator) -> None:
    """As images in their own shapes are: what is left of a variant that says the same of each is nothing."""
    expected = [rng.standard_normal((rows, 5)) + at for at, rows in enumerate((3, 7, 3, 4))]
    noisy = [each + 0.2 * rng.standard_normal(each.shape) for each in expected]
    found, blind = Likeness(), Likeness()
    for a, b in zip(expected, noisy, strict=True):
        found.add(a, b)
        blind.add(a, np.ones_like(a))
    p, q = (np.array([each.mean(axis=0) for each in those]) for those in (expected, noisy))
    p, q = p - p.mean(axis=0), q - q.mean(axis=0)
    assert found.correlation == pytest.approx((p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q), abs=1e-12)
    assert found.spread == pytest.approx(np.linalg.norm(q) / np.linalg.norm(p), abs=1e-12)
    np.testing.assert_allclose(
        found.cosines, [cosines(a.ravel(), b.ravel()) for a, b in zip(expected, noisy, strict=True)]
    )
    assert (blind.correlation, blind.spread) == (0, 0)


def test_a_variant_that_says_nothing_finite_has_no_likeness_to_a_parent_that_does() -> None:
    broken = likeness(np.eye(3), np.full((3, 3), np.nan))
    assert (broken.correlation, broken.spread) == (0, 0)


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


def test_an_interval_over_groups_covers_the_true_mean_where_one_over_values_does_not() -> None:
    rng = np.random.default_rng(4)
    # 40 answers of 5 tokens that all err alike: 200 values tell as much as 40.
    drawn = [[np.repeat(answer, 5) for answer in rng.exponential(size=40)] for _ in range(200)]
    grouped = [grouped_bootstrap(groups, resamples=300) for groups in drawn]
    single = [bootstrap(np.concatenate(groups), resamples=300) for groups in drawn]
    covered, too_sure = (np.mean([each.low <= 1 <= each.high for each in found]) for found in (grouped, single))
    # 95 % nominal; skewed values at n = 40 cost the percentile method some points, and 200 trials deviate by 1.5 %.
    assert 0.87 <= covered <= 0.99
    assert too_sure < 0.7


def test_groups_count_by_their_values() -> None:
    found = grouped_bootstrap([np.array([1.0]), np.array([4.0, 4.0, 4.0])])
    assert (found.mean, found.n) == (3.25, 2)
    assert (found.low, found.high) == (1, 4)
    # One long answer and twenty short ones: the mean of the answers' means, 0.05, is another figure.
    found = grouped_bootstrap([np.ones(1000), *([np.zeros(1)] * 20)])
    assert found.mean == pytest.approx(1000 / 1020)
    assert found.low <= found.mean <= found.high


def test_one_value_a_group_is_the_plain_interval() -> None:
    values = np.random.default_rng(0).random(30)
    found, plain = grouped_bootstrap(list(values[:, None])), bootstrap(values)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def test_no_values_are_refused() -> None:
    with pytest.raises(QuantizationError, match="at least one sample"):
        grouped_bootstrap([])
    with pytest.raises(QuantizationError, match="at least one sample"):
        bootstrap([])
