"""The Locust file: `locust -f loadtests/locustfile.py -H http://127.0.0.1:8000`, with Locust's own page or headless.

`python -m loadtests.run URL` runs it headless, holds objectives against what it measured, and writes a report.
"""

from __future__ import annotations

import platform
import random
import resource
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import gevent
import locust
import requests
from locust import events

from loadtests.discovery import DEFAULT_MIX, choose_models, parse_mix
from loadtests.images import ImagePool
from loadtests.samples import RunRecord, sample_line, write_record
from loadtests.users import USER_CLASSES, ChatUser, ClassifyUser, EmbedUser, Load

__all__ = ["ChatUser", "ClassifyUser", "EmbedUser"]  # Locust finds its users by looking through this module

_DISCOVERY_TIMEOUT_S = 30.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    """Add this file's options to Locust's."""
    group = parser.add_argument_group("PocketVLM")
    group.add_argument("--mix", default=DEFAULT_MIX, help=f"Users of each kind. Default: {DEFAULT_MIX}")
    group.add_argument("--max-tokens", type=int, default=32, help="Most tokens of a chat answer. Default: 32")
    group.add_argument("--image-px", type=int, default=256, help="Width and height of the images. Default: 256")
    group.add_argument("--distinct-images", type=int, default=64, help="Images before they repeat. Default: 64")
    group.add_argument("--seed", type=int, default=0, help="Of the images and the choice of texts. Default: 0")
    group.add_argument("--timeout-s", type=float, default=60.0, help="Longest silence within a request. Default: 60")
    group.add_argument("--max-requests", type=int, default=100_000, help="Stop after so many. Default: 100000")
    group.add_argument("--records", default="", help="Folder for requests.jsonl and run.json. Default: none written")


class Recorder:
    """Writes each request's sample as it comes, and the run's record at the end; stops the run at its limit."""

    def __init__(self, environment: Any, folder: Path | None, max_requests: int) -> None:
        self._environment = environment
        self._folder = folder
        self._file: TextIO | None = (folder / "requests.jsonl").open("w", encoding="utf-8") if folder else None
        self._requests_left = max_requests
        self._stopped_s = 0.0
        self._started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._origin_s, self._cpu_s = time.perf_counter(), _cpu_seconds()
        self.users: dict[str, int] = {}

    def on_start(self, **_: Any) -> None:
        """Count time from here."""
        self._started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._origin_s, self._cpu_s = time.perf_counter(), _cpu_seconds()

    def on_request(self, context: dict[str, Any], **_: Any) -> None:
        """Take the sample that a request's total carries; first-token and gap entries carry none."""
        sample = context.get("sample")
        if sample is None:
            return
        if self._file:
            self._file.write(sample_line(replace(sample, started_s=sample.started_s - self._origin_s)))
        self._requests_left -= 1
        if self._requests_left == 0:
            gevent.spawn(self._environment.runner.quit)

    def on_spawned(self, **_: Any) -> None:
        """Note how many users of each kind run."""
        counts = self._environment.runner.user_classes_count
        self.users = {user.kind: counts.get(user.__name__, 0) for user in USER_CLASSES if user.__name__ in counts}

    def on_stopping(self, **_: Any) -> None:
        """Note when the run ends; requests in flight may still come in."""
        self._stopped_s = time.perf_counter() - self._origin_s

    def on_quitting(self, **_: Any) -> None:
        """Write the run's record."""
        if self._file is None or self._folder is None:
            return
        self._file.close()
        load: Load = self._environment.load
        wall_s, cpu_s = time.perf_counter() - self._origin_s, _cpu_seconds() - self._cpu_s
        record = RunRecord(
            models=load.models,
            users=self.users,
            started_at=self._started_at,
            stopped_s=self._stopped_s,
            client_cpu_share=cpu_s / wall_s,
            distinct_images=len(load.images),
            images_sent=load.images.num_taken,
            versions={"locust": locust.__version__, "python": platform.python_version()},
        )
        write_record(self._folder / "run.json", record)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_: Any) -> None:
    """Choose the models and the users before the first of them starts.

    Raises:
        SystemExit: The server does not answer, or serves nothing for a kind of user that the mix asks for.
    """
    options = environment.parsed_options
    try:
        mix = parse_mix(options.mix)
        models = choose_models(_served_models(environment.host), mix)
    except (ValueError, requests.RequestException) as error:
        raise SystemExit(f"load test: {error}") from error
    for user in USER_CLASSES:
        user.weight = mix.get(user.kind, 0)
    environment.user_classes[:] = [user for user in USER_CLASSES if user.weight]
    environment.load = Load(
        models=models,
        images=ImagePool(options.seed, options.distinct_images, options.image_px),
        random=random.Random(options.seed),
        max_tokens=options.max_tokens,
        timeout_s=options.timeout_s,
    )
    random.seed(options.seed)  # Locust draws each user's next task from the global generator
    recorder = Recorder(environment, Path(options.records) if options.records else None, options.max_requests)
    environment.events.test_start.add_listener(recorder.on_start)
    environment.events.request.add_listener(recorder.on_request)
    environment.events.spawning_complete.add_listener(recorder.on_spawned)
    environment.events.test_stopping.add_listener(recorder.on_stopping)
    environment.events.quitting.add_listener(recorder.on_quitting)
    gevent.get_hub().loop.update_now()  # drawing the images stood still on gevent's clock, and would shorten the run


def _served_models(host: str | None) -> Any:
    if not host:
        raise ValueError("no server: give its URL with -H")
    session = requests.Session()
    session.trust_env = False
    with session, session.get(host.rstrip("/") + "/v1/models", timeout=_DISCOVERY_TIMEOUT_S) as response:
        response.raise_for_status()
        return response.json()
