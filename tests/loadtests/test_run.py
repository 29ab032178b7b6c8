"""Locust against the real application: what is written, and what the exit code says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import loadtests.run as run_module
from bundle.errors import EngineDeadError, MachineError
from loadtests.run import run_load_test
from loadtests.samples import read_samples
from serving.fake import FAKE_VLM, FakeBehaviour, FakeClient
from tests.loadtests.conftest import METER_WATTS

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--warmup-s", "0.5", "--image-px", "32", "--distinct-images", "4", "--spawn-rate", "100")


def load(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the load test as a user does; says on its last line whether gevent reached the calling process."""
    program = (
        "import sys\nfrom loadtests.run import main\ncode = main(sys.argv[1:])\n"
        "print('gevent' in sys.modules)\nsys.exit(code)"
    )
    command = [sys.executable, "-c", program, url, *QUICK, *options]
    # A proxy that does not exist: the load must go to the stated host, whatever the environment says.
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)


@dataclass(frozen=True)
class Run:
    done: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return loaded

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(fake_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of all kinds of users against a server that keeps its promises."""
    folder = tmp_path_factory.mktemp("load")
    objectives = ("--objective", "ttft_p50_ms<60000", "--objective", "requests_per_s>0.1")
    return Run(load(fake_server.url, "--duration-s", "4", "--output", str(folder), *objectives), folder)


@pytest.fixture
def broken(fake_server: Any) -> Iterator[FakeBehaviour]:
    """The server's behaviour, put back after the test."""
    client: FakeClient = fake_server.client
    before, client.behaviour = client.behaviour, FakeBehaviour()
    yield client.behaviour
    client.behaviour = before


def test_met_objectives_exit_with_zero(run: Run) -> None:
    assert run.done.returncode == 0, run.done.stdout + run.done.stderr
    assert [verdict["is_met"] for verdict in run.report["verdicts"]] == [True, True, True]


def test_every_entry_of_locusts_csv_counts_requests_and_no_failures(run: Run) -> None:
    with (run.folder / "locust_stats.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {
        "/v1/chat/completions (chat)",
        "/v1/embeddings (embed text)",
        "/v1/embeddings (embed image)",
        "/v1/classify (classify)",
        "time to first token",
        "inter-token latency",
        "Aggregated",
    }
    assert all(int(row["Request Count"]) > 0 and int(row["Failure Count"]) == 0 for row in rows.values())


def test_first_token_gaps_and_total_are_measured_apart(run: Run) -> None:
    chats = [sample for sample in read_samples(run.folder / "requests.jsonl") if sample.kind == "chat"]
    # The engine waits 30 ms before the first word and 10 ms before each later one, on timers that count whole
    # milliseconds and may be late. A word that is read together with the one before it has a gap near 0, and a first
    # word that is read late shortens the gap behind it: so the longest gap is held against a wait, and each whole
    # answer against what the engine waits in all.
    assert all((chat.ttft_ms or 0) >= 29 for chat in chats)
    assert all(chat.total_ms >= 29 + 9 * (chat.output_tokens - 1) for chat in chats)
    assert max(gap_ms for chat in chats for gap_ms in chat.gaps_ms) >= 9
    latencies = run.report["summary"]["latencies"]
    assert latencies["itl"]["p50"] < latencies["chat"]["p50"]
    assert 29 <= latencies["ttft"]["p50"] < latencies["chat"]["p50"]
    assert latencies["embed_text"]["p50"] >= 29


def test_a_chats_gaps_and_tokens_are_as_many_as_its_words(run: Run) -> None:
    chats = [sample for sample in read_samples(run.folder / "requests.jsonl") if sample.kind == "chat"]
    assert chats
    for chat in chats:
        assert len(chat.gaps_ms) == chat.output_tokens - 1
        assert chat.ttft_ms is not None
        assert chat.ttft_ms + sum(chat.gaps_ms) <= chat.total_ms
    assert {chat.output_tokens for chat in chats} <= {7, 8}  # "1 images." and a question of 5 or 6 words


def test_the_record_says_who_was_asked_by_how_many(run: Run) -> None:
    record = run.report["run"]
    assert record["models"] == {"chat": "fake-vlm", "embed": "fake-clip", "classify": "fake-clip"}
    assert record["users"] == {"chat": 2, "embed": 1, "classify": 1}
    assert record["distinct_images"] == 4
    assert record["images_sent"] > 4
    assert 4.5 <= record["stopped_s"] < 60  # timers may only be late


def test_the_servers_own_meter_tells_what_a_request_took(run: Run) -> None:
    rates = run.report["summary"]["rates"]
    # 10 W all the time. Readings are a second apart and interpolated, so the power between them is exact.
    assert rates["joules_per_request"] == pytest.approx(METER_WATTS / rates["requests_per_s"], rel=0.05)
    assert rates["output_tokens_per_joule"] == pytest.approx(rates["output_tokens_per_s"] / METER_WATTS, rel=0.05)
    assert "joules_per_request" in run.page


def test_gevent_stays_out_of_the_calling_process(run: Run) -> None:
    assert run.done.stdout.splitlines()[-1] == "False"


class _References(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.found.append(tag)
        self.found += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything_and_fetches_nothing(run: Run) -> None:
    references = _References()
    references.feed(run.page)
    assert references.found == []
    assert run.page.count("<svg") == 12  # a distribution and a time chart of each of six latencies
    assert "url(" not in run.page


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [400, 1280])
def test_the_page_fits_a_phone_and_a_desk_and_asks_for_nothing(run: Run, look: Any, width_px: int) -> None:
    seen = look(run.folder / "report.html", width_px)
    assert seen.page_px <= width_px
    assert len(seen.requests) == 1
    assert len(seen.charts_px) == 12
    assert all(width >= 350 and height >= 100 for width, height in seen.charts_px)
    assert min(seen.letters_px) >= 11
    assert min(seen.names_px) >= 100  # a first column of single letters was once seen
    assert seen.cut == []


def test_a_missed_objective_exits_with_three(fake_server: Any, tmp_path: Path) -> None:
    options = ("--duration-s", "1", "--mix", "chat=1", "--users", "2", "--output", str(tmp_path))
    done = load(fake_server.url, *options, "--objective", "ttft_p50_ms<5")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "missed ttft_p50_ms<5" in done.stdout
    assert "1 of 2 objectives missed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failing_server_misses_the_failure_rate_and_shows_its_words(
    fake_server: Any, broken: FakeBehaviour, tmp_path: Path
) -> None:
    broken.failure, broken.failure_after_tokens = EngineDeadError("the <b>worker</b> died"), 2
    broken.first_token_s = 0.05
    run = Run(load(fake_server.url, "--duration-s", "2", "--output", str(tmp_path)), tmp_path)
    assert run.done.returncode == 3, run.done.stdout + run.done.stderr
    assert run.report["summary"]["num_failures"]["chat"] == run.report["summary"]["num_requests"]["chat"] > 0
    assert run.report["summary"]["latencies"]["ttft"] is None
    assert dict(map(tuple, run.report["summary"]["errors"]))["in the stream: the <b>worker</b> died"] > 0
    assert "in the stream: the &lt;b&gt;worker&lt;/b&gt; died" in run.page


def test_requests_are_bounded_in_number_and_rates_take_the_true_length(fake_server: Any, tmp_path: Path) -> None:
    options = ("--warmup-s", "0", "--duration-s", "60", "--max-requests", "20", "--output", str(tmp_path), "--json")
    done = load(fake_server.url, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.rsplit("\n", 2)[0])
    sent = sum(report["summary"]["num_requests"].values())
    assert 20 <= sent <= 24  # the last one's three companions were in flight, and each may have begun one more
    assert report["run"]["stopped_s"] < 30
    assert report["summary"]["window"]["end_s"] == report["run"]["stopped_s"]


def test_a_kind_that_no_served_model_can_do_is_an_error_before_the_load(serve: Any) -> None:
    client = FakeClient(cards=(FAKE_VLM,))
    with serve(client) as url:
        done = load(url, "--duration-s", "1", "--mix", "chat=1,embed=1")
    assert done.returncode == 1
    assert "no served model can embed" in done.stderr
    assert "--mix chat=1" in done.stderr
    assert client.generations == []


def test_a_server_that_does_not_answer_is_an_error_in_one_line(serve: Any) -> None:
    with serve(FakeClient()) as url:
        pass
    done = load(url, "--duration-s", "1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert url.split(":")[-1] in done.stderr


def test_a_run_that_ends_within_its_warm_up_measured_nothing(fake_server: Any) -> None:
    done = load(fake_server.url, "--duration-s", "1", "--warmup-s", "30", "--max-requests", "4")
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("http://192.0.2.7:8000",), "--allow-remote"),
        (("http://127.0.0.1:1", "--objective", "speed<5"), "no metric 'speed'"),
        (("http://127.0.0.1:1", "--users", "0"), "users 0 is out of range"),
    ],
)
def test_what_may_not_be_run_is_refused_in_one_line(options: tuple[str, ...], told: str) -> None:
    done = load(options[0], *options[1:])
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("free_bytes", "told"), [(0, "no space is left"), (1 << 30, "ended with exit code 2: it said nothing")]
)
def test_a_disk_that_filled_up_is_told_as_such(
    fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, told: str
) -> None:
    monkeypatch.setattr(run_module, "locust_command", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    with pytest.raises(MachineError, match=told):
        run_load_test(fake_server.url, output=tmp_path)
