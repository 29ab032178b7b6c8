"""What an attack did to the server, what it may do, and the table of all."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from probing import Probed, Prober
from victim import Victim
from wire import Reply

MAX_SILENCE_S = 0.25
MAX_GROWTH_MB = 300.0
TWIN_FACTOR = 2.0
"""A machine whose cores are shared is silent itself now and then. A twin that nobody attacks, of the same HTTP server
and asked in the same seconds, shows for how long; the longest of some hundred waits varies by about this much."""


@dataclass(frozen=True)
class Damage:
    """One row of the table.

    Attributes:
        attack: Its name.
        silence_s: Longest that /health/live was silent; None where it was not asked, since the server starts or ends.
        own_silence_s: Longest without what its thread waited for a core; judged.
        silence_limit_s: What was allowed, on this machine, in this run.
        growth_mb: Peak memory above that before the attack; None where it was not weighed.
        endings: Of the requests: how -> how many.
        seconds: That the attack took.
        faults: What went beyond its limit; empty where nothing did.
    """

    attack: str
    silence_s: float | None
    own_silence_s: float | None
    silence_limit_s: float
    growth_mb: float | None
    endings: dict[str, int]
    seconds: float
    faults: tuple[str, ...]


@dataclass
class Attack:
    """An attack under way.

    Attributes:
        name: In the table.
        max_growth_mb: Memory that it may cost.
        max_silence_s: On an idle machine.
        replies: Of every request that must end well, or in an error of ours.
        faults: What the test itself found wrong.
    """

    name: str
    max_growth_mb: float = MAX_GROWTH_MB
    max_silence_s: float = MAX_SILENCE_S
    replies: list[Reply] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def came(self, *replies: Reply) -> None:
        """Count replies."""
        self.replies += replies

    def must(self, holds: bool, otherwise: str) -> None:
        """Note a fault, and go on: a row tells all of them."""
        if not holds:
            self.faults.append(otherwise)

    def damage(self, probed: Probed | None, seconds: float) -> Damage:
        """Judge what was measured."""
        endings = Counter(reply.ending for reply in self.replies)
        faults = [f"{endings[bad]} {bad}" for bad in ("lost", "hung") if endings[bad]]
        bad = [str(reply) for reply in self.replies if reply.ending in ("lost", "hung")]
        limit_s = max(self.max_silence_s, TWIN_FACTOR * (probed.twin_silence_s if probed else 0.0))
        if probed and probed.own_silence_s > limit_s:
            told = f"{probed.silence_s:.2f} s, {probed.own_silence_s:.2f} s of it by its own doing"
            faults.append(f"/health/live silent for {told}; {limit_s:.2f} s allowed")
        if probed and probed.growth_mb > self.max_growth_mb:
            faults.append(f"memory grew by {probed.growth_mb:.0f} MB, {self.max_growth_mb:.0f} allowed")
        told = (*self.faults, *faults, *bad[:2])
        if probed is None:
            return Damage(self.name, None, None, limit_s, None, dict(endings), seconds, told)
        silences_s = (probed.silence_s, probed.own_silence_s)
        return Damage(self.name, *silences_s, limit_s, probed.growth_mb, dict(endings), seconds, told)


class Record:
    """The table.

    Attributes:
        rows: In the order of the attacks.
        twin_port: Of a server that nobody attacks; 0 where there is none.
    """

    def __init__(self) -> None:
        self.rows: list[Damage] = []
        self.twin_port = 0

    @contextmanager
    def attack(self, name: str, victim: Victim | None = None, **limits: float) -> Iterator[Attack]:
        """Run an attack in the block, add its row, and fail the test if anything went beyond its limit.

        Args:
            name: In the table.
            victim: Probed and weighed meanwhile; None where the attack is one on its start or its end.
            limits: Fields of `Attack`.
        """
        attack = Attack(name, **limits)
        prober = Prober(victim.port, victim.pid, self.twin_port) if victim else None
        started_s = time.monotonic()
        try:
            yield attack
        except BaseException as error:
            attack.faults.append(f"{type(error).__name__}: {str(error)[:200]}")
            raise
        finally:
            seconds = time.monotonic() - started_s
            damage = attack.damage(prober.stop() if prober else None, seconds)
            self.rows.append(damage)
        if damage.faults:
            pytest.fail(f"{name}: {'; '.join(damage.faults)}", pytrace=False)


def write_json(rows: Iterable[Damage], path: Path) -> None:
    """Write the rows, to be put beside those of another day."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def table(rows: Iterable[Damage]) -> list[str]:
    """Return the lines of the table."""
    head = ("attack", "silence s", "its own", "allowed", "peak +MB", "ended", "lost", "hung", "s", "verdict")
    lines = [head, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip() for line in lines
    ]


def _cells(row: Damage) -> tuple[str, ...]:
    lost, hung = row.endings.get("lost", 0), row.endings.get("hung", 0)
    ended = sum(row.endings.values()) - lost - hung
    verdict = "holds" if not row.faults else f"FAILS: {' '.join(row.faults[0].split())[:100]}"
    measured = (row.silence_s, row.own_silence_s, row.silence_limit_s if row.silence_s is not None else None)
    figures = ("-" if seconds is None else f"{seconds:.2f}" for seconds in measured)
    growth = "-" if row.growth_mb is None else f"{row.growth_mb:.0f}"
    return (row.attack, *figures, growth, str(ended), str(lost), str(hung), f"{row.seconds:.1f}", verdict)
