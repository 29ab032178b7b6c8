"""What `pocketvlm top` reads of a server, and how it shows it."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from bundle.errors import MachineError, SettingsError

_TIMEOUT_S = 10.0
_MOST_BYTES = 16 << 20
"""Of an answer; a status of 64 replicas with 264 slots each is below."""
_BAR_CELLS = 10
_SHOWN_CHARACTERS = 200
_NO_KEY = (401, 403)
Status = dict[str, Any]


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a key would be sent to wherever an answer points."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Unmoved)


class Server:
    """A server that is asked for its status.

    Args:
        url: Its root, or anything below `/v1`.
        key: Sent as a bearer token; None sends none.

    Raises:
        SettingsError: The URL is none of HTTP.
    """

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a bracket that is not closed, or a port that is no number
            is_address = False
        if not is_address:
            raise SettingsError(f"{url!r} is no URL of a server; write such as http://127.0.0.1:8000")
        path = parts.path.split("/v1")[0].rstrip("/")
        self._url = f"{parts.scheme}://{parts.netloc}{path}/v1/status"
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def status(self) -> Status:
        """Return what the server is doing.

        Raises:
            MachineError: It does not answer, or not as a server of ours.
        """
        asked = urllib.request.Request(self._url, headers=self._headers)
        try:
            with _OPENER.open(asked, timeout=_TIMEOUT_S) as response:
                text = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise MachineError(self._refusal(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise MachineError(
                f"{self._url} does not answer: {reason}. Is the server up, and the URL right?"
            ) from error
        return self._read(text)

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if error.code in _NO_KEY:
            return f"{self._url} asks for a key ({error.code}); give one with --key, or in the variable POCKETVLM_KEY"
        return (
            f"{self._url} answers {error.code} {error.reason}: this is no PocketVLM server, or one of an older version"
        )

    def _read(self, text: bytes) -> Status:
        try:
            status = json.loads(text)
        except ValueError:
            status = None
        if not isinstance(status, dict) or status.get("server") != "pocketvlm":
            told = text[:_SHOWN_CHARACTERS].decode(errors="replace")
            raise MachineError(f"{self._url} is no status of a PocketVLM server; it begins with {told!r}")
        return status


@dataclass(frozen=True)
class _Engine:
    """One engine as it was told now, and a moment before.

    Attributes:
        model: As `/v1/status` describes it.
        name: "0", or the replica's.
        now: As it is.
        before: As it was; the same where it was not there.
    """

    model: Status
    name: str
    now: Status
    before: Status

    def gauge(self, name: str) -> float:
        """Return a momentary value; 0 where the engine has none."""
        return float(self.now["gauges"].get(name, 0.0))

    def per_s(self, name: str) -> float:
        """Return how much a count grows in a second."""
        grown_s = self.now["clock_s"] - self.before["clock_s"]
        grown = self.gauge(name) - float(self.before["gauges"].get(name, 0.0))
        return grown / grown_s if grown_s > 0 else 0.0

    def share(self, part: str, whole: str) -> float | None:
        """Return a count's share of another since the start; None where there is nothing yet."""
        total = self.gauge(whole)
        return self.gauge(part) / total if total else None

    @property
    def image_share(self) -> float | None:
        """Images whose features were kept, of all."""
        total = self.gauge("image_cache_hits") + self.gauge("image_cache_misses")
        return self.gauge("image_cache_hits") / total if total else None

    @property
    def first_token_s(self) -> float | None:
        """Median of the newest answers."""
        return median(self.now["first_token_s"]) if self.now["first_token_s"] else None

    @property
    def kept_rows(self) -> int:
        """Rows of prompts whose sequences have ended."""
        return sum(slot["rows"] for slot in self.now["slots"] if slot["state"] == "kept")


def _engines(now: Status, before: Status) -> Iterator[_Engine]:
    earlier = {(model["id"], name): each for model in before["models"] for name, each in model["engines"].items()}
    for model in now["models"]:
        for name, engine in model["engines"].items():
            yield _Engine(model, name, engine, earlier.get((model["id"], name), engine))


def summary(now: Status, before: Status) -> Status:
    """Return the newer of two statuses with the rates between them, for programs."""
    rates = {
        (each.model["id"], each.name): {
            "tokens_read_per_s": round(each.per_s("tokens_read"), 3),
            "tokens_sampled_per_s": round(each.per_s("tokens_sampled"), 3),
            "prefix_hit_share": each.share("prefix_cache_hits", "prefix_cache_queries"),
            "image_hit_share": each.image_share,
            "first_token_p50_s": each.first_token_s,
        }
        for each in _engines(now, before)
    }
    models = [
        {**model, "engines": {name: {**each, **rates[model["id"], name]} for name, each in model["engines"].items()}}
        for model in now["models"]
    ]
    return {**now, "models": models}


def tables(now: Status, before: Status) -> Iterator[Table | Text]:
    """Yield the server in a line, each engine in a few, and its slots that are not free in a table."""
    state = "[green]ready[/green]" if now["is_ready"] else f"[red]not ready[/red]: {_plain(now['reason'])}"
    yield Text.from_markup(f"PocketVLM {now['version']}, up {_duration(now['uptime_s'])}, {state}")
    engines = [*_engines(now, before)]
    for each in engines:
        yield _engine_lines(each)
        if each.now["waiting"] or any(slot["state"] != "free" for slot in each.now["slots"]):
            yield _slot_table(each)


def _engine_lines(each: _Engine) -> Text:
    rows, most = each.gauge("num_tokens_running"), each.gauge("kv_cache_rows")
    seats = f"/{each.now['num_seats']}" if each.now["num_seats"] else ""
    engine = "" if each.name == "0" else f" on {_plain(each.name)}"
    first = "-" if each.first_token_s is None else f"{each.first_token_s * 1e3:.0f} ms"
    images = f"{each.gauge('num_images_waiting'):.0f} at the encoder, {each.gauge('num_preprocess_waiting'):.0f} before"
    lines = [
        f"[bold]{_plain(each.model['id'])}[/bold]{engine}  memory {each.now['memory_bytes'] / 2**20:.0f} MiB",
        f"  requests  {each.gauge('num_requests_running'):.0f}{seats} running, "
        f"{each.gauge('num_requests_waiting'):.0f} waiting",
        f"  images    {images}, {_percent(each.image_share)} of features kept",
    ]
    if most:
        lines += [
            f"  tokens/s  {each.per_s('tokens_read'):.0f} read, {each.per_s('tokens_sampled'):.0f} out, "
            f"first token {first}",
            f"  cache     {_bar(rows, most)} {rows:.0f} of {most:.0f} rows run, {each.kept_rows} kept, "
            f"{_percent(each.share('prefix_cache_hits', 'prefix_cache_queries'))} of prompts found",
        ]
    return Text.from_markup("\n".join(lines))


def _slot_table(each: _Engine) -> Table:
    headings = ("  slot", "state", "rows", "prompt", "cached", "image", "out", "age", "answer")
    table = Table(
        *(Column(heading, no_wrap=True) for heading in headings), box=None, header_style="dim", pad_edge=False
    )
    for slot in each.now["slots"]:
        if slot["state"] != "free":
            table.add_row(*_slot_cells(slot, each.now["slot_rows"]))
    for place, waiting in enumerate(each.now["waiting"], 1):
        age, prompt = f"{waiting['age_s']:.1f} s", str(waiting["prompt_tokens"])
        table.add_row(f"  +{place}", "[dim]waits[/dim]", "", prompt, "", "", "", age, _plain(waiting["request_id"]))
    return table


def _slot_cells(slot: Status, most_rows: int) -> Iterator[str]:
    style = {"decode": "green", "prefill": "yellow", "compress": "yellow"}.get(slot["state"], "dim")
    yield f"  {slot['slot']}"
    yield f"[{style}]{slot['state']}[/{style}]"
    yield f"{_bar(slot['rows'], most_rows)} {slot['rows']}"
    if slot["state"] == "kept":
        return
    for name in ("prompt_tokens", "cached_tokens", "image_tokens", "output_tokens"):
        yield str(slot[name])
    yield f"{slot['age_s']:.1f} s"
    yield _plain(slot["request_id"])


def _plain(text: str) -> str:
    """Return a server's word as it may be printed: nothing in it moves the cursor or changes a colour."""
    return escape("".join(filter(str.isprintable, text))[:_SHOWN_CHARACTERS])


def _bar(part: float, whole: float) -> str:
    filled = round(_BAR_CELLS * min(part / whole, 1.0)) if whole else 0
    return "█" * filled + "░" * (_BAR_CELLS - filled)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _duration(length_s: float) -> str:
    minutes, seconds = divmod(int(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
