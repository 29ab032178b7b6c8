"""What counts, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.samples import RequestSample, RunRecord, read_record, read_samples, sample_line, write_record
from loadtests.summary import Window, summarize


def embed(started_s: float, total_ms: float = 10.0, error: str | None = None) -> RequestSample:
    return RequestSample("embed_text", started_s, total_ms, error=error)


def test_latencies_are_of_requests_sent_in_the_window_and_rates_of_what_ended_in_it() -> None:
    samples = [embed(0.5, 1000.0), embed(1.0, 20.0), embed(2.9, 500.0), embed(3.0, 7.0)]
    summary = summarize(samples, Window(1.0, 3.0))
    latency = summary.latencies["embed_text"]
    assert latency is not None
    assert (latency.n, latency.max) == (2, 500.0)
    assert summary.rates["requests_per_s"] == 1.0  # the first and the second ended in the two seconds


def test_a_failure_counts_as_a_failure_and_never_as_a_latency() -> None:
    samples = [
        embed(1.0),
        embed(1.1, 0.1, "ConnectionError"),
        embed(1.2, 0.1, "ConnectionError"),
        embed(1.3, 1.0, "503"),
    ]
    summary = summarize(samples, Window(0.0, 2.0))
    latency = summary.latencies["embed_text"]
    assert latency is not None
    assert latency.n == 1
    assert summary.rates["failure_rate"] == 0.75
    assert summary.num_failures["embed_text"] == 3
    assert summary.errors == (("ConnectionError", 2), ("503", 1))


def test_nothing_measured_is_none_and_not_zero() -> None:
    summary = summarize([], Window(0.0, 2.0))
    assert set(summary.rates.values()) == {None}
    assert set(summary.latencies.values()) == {None}


def test_output_tokens_are_summed_over_the_chats_that_ended() -> None:
    samples = [RequestSample("chat", t, 100.0, ttft_ms=5.0, output_tokens=30) for t in (0.0, 0.5, 1.95)]
    assert summarize(samples, Window(0.0, 2.0)).rates["output_tokens_per_s"] == 30.0


def test_samples_and_record_survive_their_files(tmp_path: Path) -> None:
    samples = [
        RequestSample("chat", 0.25, 81.5, ttft_ms=20.125, gaps_ms=(1.5, 0.0), output_tokens=3, bytes_read=900),
        RequestSample("classify", 1.0, 3.0, error="400: “ünknown”\nlabel"),
    ]
    (tmp_path / "requests.jsonl").write_text("".join(map(sample_line, samples)), encoding="utf-8")
    assert list(read_samples(tmp_path / "requests.jsonl")) == samples
    record = RunRecord({"chat": "m"}, {"chat": 2}, "2026-01-01T00:00:00+00:00", 5.0, 0.5, 64, 80, {"locust": "2"})
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path / "run.json") == record


def test_a_window_is_half_open() -> None:
    window = Window(1.0, 3.0)
    assert [window.holds(moment_s) for moment_s in (0.999, 1.0, 2.999, 3.0)] == [False, True, True, False]
    assert window.length_s == pytest.approx(2.0)
