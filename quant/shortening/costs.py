"""What shorter prompts save: times and bytes, as `python -m loadtests.shortening` wrote them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from bundle.errors import QuantizationError
from pages.file import write_whole
from pages.frame import table
from runtime.turns import Quartiles


@dataclass(frozen=True)
class Cost:
    """One way at one share.

    Attributes:
        way: In words.
        share: That stays.
        first_token_ms: From the request to its first token, of images that nobody saw.
        known_first_token_ms: Of images whose features are kept.
        prompt_tokens: That the decoder reads.
        cache_bytes: That the prompt holds while its answer is written.
        decode_tokens_s: Of all answers together.
    """

    way: str
    share: float
    first_token_ms: Quartiles | None = None
    known_first_token_ms: Quartiles | None = None
    prompt_tokens: int | None = None
    cache_bytes: int | None = None
    decode_tokens_s: Quartiles | None = None


@dataclass(frozen=True)
class Costs:
    """What was timed of one bundle and one kind of request.

    Attributes:
        model: Its name and scheme.
        asked: What of it, in words.
        machine: That it ran on.
        costs: The whole prompt first.
    """

    model: str
    asked: str
    machine: str
    costs: tuple[Cost, ...]


def write_costs(path: Path, found: Sequence[Costs]) -> None:
    """Write a file that `read_costs` reads.

    Raises:
        OSError: It cannot be written.
    """
    write_whole(path, json.dumps([asdict(each) for each in found], indent=1).encode())


def read_costs(path: Path) -> list[Costs]:
    """Return what `write_costs` wrote.

    Raises:
        QuantizationError: The file cannot be read, or is another's.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, list):
            raise ValueError(f"a list is wanted, {type(told).__name__} is there")
        return [
            Costs(each["model"], each["asked"], each["machine"], tuple(_cost(cost) for cost in each["costs"]))
            for each in told
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(f"{path} holds no costs of `python -m loadtests.shortening`: {error!r}") from error


def _cost(told: dict[str, object]) -> Cost:
    times = {name: Quartiles(**value) if isinstance(value, dict) else value for name, value in told.items()}
    return Cost(**times)  # type: ignore[arg-type]


def costs_section(found: Sequence[Costs]) -> str:
    """Return the part of a page that tells what is saved; empty where nothing was timed."""
    return "".join(_section(each) for each in found)


def _section(found: Costs) -> str:
    head = ("way", "kept", "prompt tokens", "first token", "images known", "cache of a prompt", "tokens/s")
    rows = [
        [
            escape(cost.way),
            f"{cost.share:.0%}",
            "" if cost.prompt_tokens is None else f"{cost.prompt_tokens:,}",
            _times(cost.first_token_ms, found.costs[0].first_token_ms, "ms"),
            _times(cost.known_first_token_ms, found.costs[0].known_first_token_ms, "ms"),
            "" if cost.cache_bytes is None else f"{cost.cache_bytes / 2**20:.1f} MiB",
            _times(cost.decode_tokens_s, found.costs[0].decode_tokens_s, "/s"),
        ]
        for cost in found.costs
    ]
    return (
        f'<section><h2>What it saves: {escape(found.asked)}</h2><p class="soft">{escape(found.model)}, on '
        f"{escape(found.machine)}; random weights say nothing of quality, and the same of time.</p>{table(head, rows)}"
        "</section>"
    )


def _times(value: Quartiles | None, whole: Quartiles | None, unit: str) -> str:
    if value is None:
        return ""
    ratio = "" if whole is None or whole is value else f"<small>{value.median / whole.median:.2f} of all</small>"
    return f"{value.median:,.0f} {unit}{ratio}"
