"""The HTML page of a load test: one file, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from loadtests.charts import distribution_chart, time_chart
from loadtests.distribution import STATISTICS
from loadtests.report import LoadReport
from loadtests.samples import RequestSample
from loadtests.summary import latency_values
from loadtests.wording import counted, number
from pages.file import write_whole
from pages.frame import page, table
from pages.svg import svg

BUSY_CLIENT_SHARE = 0.8
"""Above this share of a core the load generator waits for itself, and its figures are too high."""

TITLES = {
    "ttft": "Time to first token",
    "itl": "Inter-token latency",
    "chat": "Chat, whole answer",
    "embed_text": "Embed two texts",
    "embed_image": "Embed an image",
    "classify": "Classify an image",
}


def write_page(path: Path, report: LoadReport) -> None:
    """Write the page of a report."""
    sections = (
        _heading(report),
        _objectives(report),
        _latencies(report),
        _throughput(report),
        _failures(report),
        _charts(report),
        _method(report),
    )
    write_whole(path, page(f"Load test of {report.url}", "".join(sections)).encode())


def _heading(report: LoadReport) -> str:
    num_missed = sum(not verdict.is_met for verdict in report.verdicts)
    total = len(report.verdicts)
    verdict = (
        f'<p class="bad">{num_missed} of {total} objectives missed</p>'
        if num_missed
        else f'<p class="good">{counted(total, "objective")} met</p>'
    )
    users = ", ".join(f"{count} {kind} ({escape(report.record.models[kind])})" for kind, count in report.users())
    return (
        f"<h1>Load test of {escape(report.url)}</h1>"
        f'<p class="soft">{escape(report.record.started_at)} · {counted(report.plan.users, "user")}: {users} · '
        f"{number(report.summary.window.length_s)} s measured after {number(report.plan.warmup_s)} s of warm-up</p>"
        f"{verdict}"
    )


def _objectives(report: LoadReport) -> str:
    rows = (
        (
            escape(str(verdict.objective)),
            "nothing measured" if verdict.measured is None else number(verdict.measured),
            '<span class="good">met</span>' if verdict.is_met else '<span class="bad">missed</span>',
        )
        for verdict in report.verdicts
    )
    return "<h2>Objectives</h2>" + table(("objective", "measured", "verdict"), rows)


def _latencies(report: LoadReport) -> str:
    rows = [
        (TITLES[name], str(values.n), *(number(values.statistic(statistic)) for statistic in STATISTICS))
        for name, values in report.summary.latencies.items()
        if values is not None
    ]
    return "<h2>Latencies, ms</h2>" + table(("", "n", *STATISTICS), rows)


def _throughput(report: LoadReport) -> str:
    summary = report.summary
    requests = [
        (TITLES[kind], str(count), str(summary.num_failures[kind]))
        for kind, count in summary.num_requests.items()
        if count
    ]
    rates = [(name, "nothing measured" if value is None else number(value)) for name, value in summary.rates.items()]
    return (
        "<h2>Requests and rates</h2>"
        + table(("", "sent", "failed"), requests)
        + table(("in the measured window", ""), rates)
    )


def _failures(report: LoadReport) -> str:
    if not report.summary.errors:
        return ""
    rows = ((escape(text), str(count)) for text, count in report.summary.errors)
    return "<h2>Failures</h2>" + table(("what the client saw", "times"), rows, prose=0)


def _charts(report: LoadReport) -> str:
    window = report.summary.window
    measured = latency_values(sample for sample in report.samples if window.holds(sample.started_s))
    end_s = max(sample.started_s for sample in report.samples)
    charts = [
        (title, distribution_chart(title, measured[name]), time_chart(title, points, end_s, window.start_s))
        for name, title in TITLES.items()
        if measured[name] and (points := time_points(report.samples, name))
    ]
    figures = "".join(
        f'<h3>{title}</h3><div class="charts"><figure>{svg(spread)}</figure><figure>{svg(course)}</figure></div>'
        for title, spread, course in charts
    )
    return f"<h2>Charts</h2>{figures}"


def time_points(samples: Sequence[RequestSample], name: str) -> list[tuple[float, float]]:
    """Return (seconds, milliseconds) of a latency over the run; for gaps, the moment at which the later token came."""
    points: list[tuple[float, float]] = []
    for sample in samples:
        if sample.error is not None:
            continue
        if name == "ttft" and sample.ttft_ms is not None:
            points.append((sample.started_s, sample.ttft_ms))
        elif name == "itl" and sample.ttft_ms is not None:
            moment_s = sample.started_s + sample.ttft_ms / 1e3
            for gap_ms in sample.gaps_ms:
                moment_s += gap_ms / 1e3
                points.append((moment_s, gap_ms))
        elif name == sample.kind:
            points.append((sample.started_s, sample.total_ms))
    return sorted(points)


def _method(report: LoadReport) -> str:
    plan, record = report.plan, report.record
    share = f"{record.client_cpu_share:.0%}"
    busy = (
        f'<strong class="bad">The load generator used {share} of a core: its own waiting is in these figures. '
        "Use fewer users, or a machine of its own.</strong>"
        if record.client_cpu_share > BUSY_CLIENT_SHARE
        else f"The load generator used {share} of a core."
    )
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in record.versions.items())
    return (
        "<h2>How this was measured</h2><p>Closed loop: each user sends its next request when it has the answer to its "
        "last, so a slower server is also asked less often. Clocks run on the client, from the sending of the request. "
        "First token: the first event with text. Inter-token latency: from one event with text to the next; an event "
        "may carry several tokens, and events that arrive together are 0 ms apart. Latencies are of requests sent in "
        "the measured window that succeeded; rates count what ended in it. Output tokens are counted by the server; "
        "energy is what its own meters told in the window, idling included.</p>"
        f"<p>{busy} Images: {plan.image_px} px, {record.images_sent} sent, {record.distinct_images} distinct: a server "
        "that caches image features need not compute a repeated one. "
        f"Chat answers: at most {plan.max_tokens} tokens. Seed {plan.seed}.</p>"
        f'<p class="soft">{versions}</p>'
    )
