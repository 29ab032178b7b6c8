"""Statistics equal their definitions."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.distribution import Distribution

measurements = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@settings(deadline=None)  # the machine may be busy
@given(measurements)
def test_percentiles_equal_numpys_and_the_rest_the_standard_librarys(values: list[float]) -> None:
    found = Distribution.of(values)
    assert found is not None
    assert found.n == len(values)
    # A rounding unit or two: the standard library sums exactly, numpy pairwise.
    assert found.mean == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert found.p50 == pytest.approx(statistics.median(values), rel=1e-12)
    assert found.max == max(values)
    for name, share in (("p90", 90), ("p95", 95), ("p99", 99)):
        assert found.statistic(name) == np.percentile(values, share)


def test_ninety_fifth_percentile_of_a_known_set() -> None:
    found = Distribution.of([float(v) for v in range(101)])
    assert found == Distribution(n=101, mean=50, p50=50, p90=90, p95=95, p99=99, max=100)


def test_nothing_measured_has_no_statistics() -> None:
    assert Distribution.of([]) is None
