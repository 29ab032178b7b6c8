"""What a load test measured, made of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtests.distribution import Distribution
from loadtests.samples import KINDS, RequestSample

LATENCIES = ("ttft", "itl", "chat", "embed_text", "embed_image", "classify")
"""Latency metrics: time to first token, inter-token latency, and each kind's total."""

RATES = ("failure_rate", "requests_per_s", "output_tokens_per_s", "joules_per_request", "output_tokens_per_joule")
"""Metrics that are one number per run. The energy is all that the server's meters told, idling included."""


@dataclass(frozen=True)
class Window:
    """The measured part of a run, in seconds since its start: warm-up and wind-down lie outside."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds measured."""
        return self.end_s - self.start_s

    def holds(self, moment_s: float) -> bool:
        """Return whether a moment lies in the half-open window."""
        return self.start_s <= moment_s < self.end_s


@dataclass(frozen=True)
class Summary:
    """The figures of one run.

    Latencies are of the requests *sent* within the window that succeeded; so is the failure rate of all sent within it.
    Rates per second count what *ended* within the window.

    Attributes:
        num_requests: Sent within the window, by kind.
        num_failures: Of these, failed, by kind.
        latencies: Milliseconds by name of `LATENCIES`; None where nothing was measured.
        rates: By name of `RATES`; None where nothing was measured.
        errors: How often each error text came, most frequent first.
    """

    window: Window
    num_requests: dict[str, int]
    num_failures: dict[str, int]
    latencies: dict[str, Distribution | None]
    rates: dict[str, float | None]
    errors: tuple[tuple[str, int], ...]


def latency_values(samples: Iterable[RequestSample]) -> dict[str, list[float]]:
    """Return the milliseconds behind each of `LATENCIES`, of the samples that did not fail."""
    values: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for sample in samples:
        if sample.error is not None:
            continue
        values[sample.kind].append(sample.total_ms)
        if sample.ttft_ms is not None:
            values["ttft"].append(sample.ttft_ms)
        values["itl"].extend(sample.gaps_ms)
    return values


def summarize(samples: Sequence[RequestSample], window: Window, joules: float | None = None) -> Summary:
    """Return the figures of a run's window.

    Args:
        samples: Every request.
        window: What is measured.
        joules: That the server's meters told within it; None where they told nothing.
    """
    sent = [sample for sample in samples if window.holds(sample.started_s)]
    failed = [sample for sample in sent if sample.error is not None]
    num_requests, num_failures = Counter(s.kind for s in sent), Counter(s.kind for s in failed)
    return Summary(
        window=window,
        num_requests={kind: num_requests[kind] for kind in KINDS},
        num_failures={kind: num_failures[kind] for kind in KINDS},
        latencies={name: Distribution.of(values) for name, values in latency_values(sent).items()},
        rates={**_rates(samples, window, len(sent), len(failed)), **_energy(samples, window, joules)},
        errors=tuple(Counter(str(sample.error) for sample in failed).most_common()),
    )


def _rates(samples: Sequence[RequestSample], window: Window, num_sent: int, num_failed: int) -> dict[str, float | None]:
    ended = [s for s in samples if s.error is None and window.holds(s.ended_s)]
    has_chat = any(s.kind == "chat" for s in ended)
    output_tokens = sum(s.output_tokens for s in ended)
    return {
        "failure_rate": num_failed / num_sent if num_sent else None,
        "requests_per_s": len(ended) / window.length_s if ended else None,
        "output_tokens_per_s": output_tokens / window.length_s if has_chat else None,
    }


def _energy(samples: Sequence[RequestSample], window: Window, joules: float | None) -> dict[str, float | None]:
    ended = [s for s in samples if s.error is None and window.holds(s.ended_s)]
    tokens = sum(s.output_tokens for s in ended)
    return {
        "joules_per_request": joules / len(ended) if joules is not None and ended else None,
        "output_tokens_per_joule": tokens / joules if joules and tokens else None,
    }
