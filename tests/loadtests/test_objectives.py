"""Objectives are read strictly, and a figure that is absent never meets one."""

from __future__ import annotations

import pytest

from bundle.errors import SettingsError
from loadtests.objectives import Objective, judge, parse_objective, parse_objectives
from loadtests.samples import RequestSample
from loadtests.summary import Window, summarize

SAMPLES = [
    RequestSample("chat", 1.0, 100.0, ttft_ms=40.0, gaps_ms=(10.0, 20.0), output_tokens=6),
    RequestSample("chat", 2.0, 300.0, ttft_ms=60.0, gaps_ms=(30.0,), output_tokens=4),
    RequestSample("embed_text", 3.0, 5.0),
    RequestSample("embed_text", 4.0, 1000.0, error="503: the engine died"),
]
SUMMARY = summarize(SAMPLES, Window(0.0, 10.0))


def is_met(text: str) -> bool:
    (verdict,) = judge([parse_objective(text)], SUMMARY)
    return verdict.is_met


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("ttft_p95_ms<500", Objective("ttft_p95_ms", "<", 500.0)),
        (" itl_mean_ms <= 1.5 ", Objective("itl_mean_ms", "<=", 1.5)),
        ("embed_image_max_ms<2e3", Objective("embed_image_max_ms", "<", 2000.0)),
        ("failure_rate<=1%", Objective("failure_rate", "<=", 0.01)),
        ("requests_per_s>=5", Objective("requests_per_s", ">=", 5.0)),
    ],
)
def test_an_objective_is_read(text: str, objective: Objective) -> None:
    assert parse_objective(text) == objective


@pytest.mark.parametrize(
    "text",
    ["", "ttft_p95_ms", "ttft_p95_ms=5", "ttft_p42_ms<5", "tfft_p95_ms<5", "ttft_p95_ms<five", "ttft_p95_ms<1e"]
    + ["ttft_p95_ms<-5", "ttft_p95_ms<1e999", "ttft_p95_ms<5%", "ttft_p95_ms<5 ms", "ttft_p95_s<5", "__class__<5"],
)
def test_an_objective_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="objective"):
        parse_objective(text)


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"ttft.*output_tokens_per_s"):
        parse_objective("speed<5")


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("ttft_max_ms<60", False),
        ("ttft_max_ms<=60", True),
        ("ttft_mean_ms<51", True),
        ("itl_p50_ms>20", False),
        ("itl_p50_ms>=20", True),
        ("chat_max_ms<=299", False),
        ("embed_text_max_ms<=5", True),
        ("failure_rate<=25%", True),
        ("failure_rate<25%", False),
        ("requests_per_s>=0.3", True),
        ("output_tokens_per_s>1", False),
        ("output_tokens_per_s>=1", True),
    ],
)
def test_a_measured_figure_is_held_against_the_limit(text: str, met: bool) -> None:
    assert is_met(text) is met


@pytest.mark.parametrize("text", ["classify_p50_ms<1e9", "classify_p50_ms>=0", "embed_image_mean_ms<1e9"])
def test_what_was_not_measured_meets_no_objective(text: str) -> None:
    assert not is_met(text)


def test_no_failure_is_allowed_unless_stated() -> None:
    assert [str(objective) for objective in parse_objectives(["ttft_p50_ms<9"])] == [
        "failure_rate<=0",
        "ttft_p50_ms<9",
    ]
    assert [str(objective) for objective in parse_objectives(["failure_rate<=5%"])] == ["failure_rate<=0.05"]
