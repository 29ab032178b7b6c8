"""What a key may take, by a clock that the tests set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import RateLimitError
from serving.access.keys import ApiKey
from serving.access.limits import Bucket, KeyLimits, duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(clock: Clock, **fields: int) -> KeyLimits:
    return KeyLimits(ApiKey(name="ci", sha256="0" * 64, **fields), clock)


def one(limits: KeyLimits) -> None:
    with limits.running():
        pass


def test_a_minutes_requests_may_come_at_once_and_come_back_evenly(clock: Clock) -> None:
    held = limits(clock, requests_per_minute=3)
    for _ in range(3):
        one(held)
    with pytest.raises(RateLimitError, match=r"may take 3 requests a minute.*retry in 20s") as refused:
        one(held)
    assert refused.value.retry_after_s == pytest.approx(20)
    clock.now_s += 19.9
    with pytest.raises(RateLimitError):
        one(held)
    clock.now_s += 0.2
    one(held)
    with pytest.raises(RateLimitError):
        one(held)


def test_a_refused_request_takes_nothing(clock: Clock) -> None:
    held = limits(clock, requests_per_minute=1)
    one(held)
    for _ in range(5):
        with pytest.raises(RateLimitError):
            one(held)
    clock.now_s += 60
    one(held)


def test_tokens_that_were_overdrawn_are_paid_back_first(clock: Clock) -> None:
    held = limits(clock, tokens_per_minute=60)
    one(held)
    held.charge(180)  # known only when it is over
    with pytest.raises(RateLimitError, match="60 tokens a minute") as refused:
        one(held)
    assert refused.value.retry_after_s == pytest.approx(121)
    clock.now_s += 122
    one(held)


def test_so_many_are_under_way_and_no_more(clock: Clock) -> None:
    held = limits(clock, concurrent_requests=2, requests_per_minute=100)
    with held.running(), held.running():
        with pytest.raises(RateLimitError, match=r"2 requests of the key ci are under way; 2 may be"):
            one(held)
        assert held.headers["x-ratelimit-remaining-requests"] == "98"
    one(held)
    assert held.num_running == 0


def test_a_request_that_fails_is_no_longer_under_way(clock: Clock) -> None:
    held = limits(clock, concurrent_requests=1)
    with pytest.raises(ZeroDivisionError), held.running():
        _ = 1 / 0
    one(held)


def test_headers_tell_what_is_limited_alone(clock: Clock) -> None:
    assert limits(clock).headers == {}
    held = limits(clock, requests_per_minute=60, tokens_per_minute=600)
    one(held)
    held.charge(150)
    assert held.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15s",
    }
    held.charge(10_000)
    assert held.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0ms"), (0.0101, "11ms"), (1, "1s"), (59.2, "1m0s"), (90, "1m30s"), (7200, "120m0s")]
)
def test_lengths_of_time_are_told_as_openai_tells_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500)), max_size=30),
)
def test_over_any_time_no_more_is_let_in_than_came_back_and_one_minutes_beside(
    per_minute: int, steps: list[tuple[float, int]]
) -> None:
    """Whoever takes only what is there gets at most the rate's share of the time that passed, and one allowance."""
    bucket, now_s, taken = Bucket(per_minute, 0.0), 0.0, 0
    for pause_s, wanted in steps:
        now_s += pause_s
        if bucket.left(now_s) >= wanted:
            bucket.take(wanted, now_s)
            taken += wanted
    assert taken <= per_minute * (1 + now_s / 60) + 1e-6
