"""A soak in small, and what judges one: a slope that is there is found, and noise is not taken for one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soak
from flatness import slope_of
from victim import Figures
from wire import stream_ending


@pytest.mark.slow
def test_every_request_of_a_short_soak_ends_and_nothing_grows(
    smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path
) -> None:
    models = {"chat_model": "tiny-smolvlm", "embedding_model": "tiny-clip"}
    soaked = soak.soak(1.0, tmp_path, [smolvlm_bundle, clip_bundle], **models)
    soak.write(soaked, tmp_path)
    assert not soaked.faults, "\n".join(soak.lines(soaked))
    assert min(sum(endings.values()) for endings in soaked.endings.values()) > 0
    assert (tmp_path / "soak.png").stat().st_size > 0


def walk(seed: int, num_samples: int, drift_per_s: float) -> tuple[list[float], list[float]]:
    """Return a quantity that swings around a line, as memory does: neighbours are alike."""
    rng, swing, values = np.random.default_rng(seed), 0.0, []
    for second in range(num_samples):
        swing = 0.9 * swing + rng.normal()
        values.append(200 + swing + drift_per_s * second)
    return list(map(float, range(num_samples))), values


def test_a_leak_is_found_with_its_size() -> None:
    slope = slope_of(*walk(0, 600, 0.1))
    assert slope.low < 6 < slope.high  # 0.1 a second
    assert slope.sure_growth > 50


def test_the_interval_covers_a_flat_line_about_as_often_as_it_says() -> None:
    covered = [slope.low <= 0 <= slope.high for slope in (slope_of(*walk(seed, 600, 0.0)) for seed in range(200))]
    assert 0.88 <= np.mean(covered) <= 0.99  # 95 %: blocks of 37 samples are not quite independent


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="10 samples are too few"):
        slope_of(list(range(10)), list(range(10)))


def test_what_locust_notes_is_read_as_a_client_sees_it(tmp_path: Path) -> None:
    from loadtests.samples import RequestSample, sample_line

    errors = (None, "429: busy", "in the stream: engine_failed", "ReadTimeout", "ConnectionError")
    lines = [sample_line(RequestSample("chat", 0.0, 1.0, error=error)) for error in errors]
    (tmp_path / "requests.jsonl").write_text("".join(lines))
    assert soak.locust_endings(tmp_path / "requests.jsonl") == Counter(answered=1, refused=2, hung=1, lost=1)


class _Stopped:
    """A server that went away."""

    is_running = False


def test_a_soak_whose_server_ended_and_grew_fails() -> None:
    figures = [Figures(200.0 + step, 0.0, 10 + step, 8, 1) for step in range(100)]
    counts = {"asks": Counter(answered=5, lost=1)}
    soaked = soak.Soaked(counts, [], [float(step) for step in range(100)], figures, figures[0], figures[-1], 3)
    soak.judge(soaked, _Stopped(), True)  # type: ignore[arg-type]
    told = "; ".join(soaked.faults)
    for fault in ("the server ended", "1 requests were lost", "memory grew by", "descriptors under load", "at rest"):
        assert fault in told


@pytest.mark.parametrize(
    ("events", "ending"),
    [
        (['{"choices":[{"delta":{},"finish_reason":"stop"}]}', "[DONE]"], "answered"),
        (['{"error":{"code":"x"}}', "[DONE]"], "refused"),
        (['{"choices":[{"delta":{},"finish_reason":"stop"}]}'], "lost"),
        (['{"choices":[{"delta":{},"finish_reason":null}]}', "[DONE]"], "lost"),
        (['{"choices":[{"delta":{},"finish_reason":"stop"}]}', "[DONE]", "[DONE]"], "lost"),
    ],
)
def test_a_stream_ends_once(events: list[str], ending: str) -> None:
    assert stream_ending("".join(f"data: {event}\n\n" for event in events).encode()) == ending
