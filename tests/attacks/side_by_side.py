"""Two tables of attacks, of two days or two versions, in one.

python tests/attacks/side_by_side.py BEFORE.json AFTER.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAD = ("attack", "silence s", "peak +MB", "lost", "hung", "before", "after")


def side_by_side(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of both tables' rows by attack; an attack that one of them lacks has "-" there."""
    old = {row["attack"]: row for row in before}
    new = {row["attack"]: row for row in after}
    lines = [_HEAD, *(_cells(name, old.get(name), new.get(name)) for name in {**new, **old})]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cells(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, ...]:
    pairs = [(_figures(old)[place], _figures(new)[place]) for place in range(4)]
    return (name, *(f"{first} -> {second}" for first, second in pairs), _verdict(old), _verdict(new))


def _figures(row: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return silence, growth, lost and hung, "-" where they were not measured."""
    if row is None:
        return ("-",) * 4
    silence_s, growth_mb = row["silence_s"], row["growth_mb"]
    measured = ("-" if silence_s is None else f"{silence_s:.2f}", "-" if growth_mb is None else f"{growth_mb:.0f}")
    return (*measured, *(str(row["endings"].get(ending, 0)) for ending in ("lost", "hung")))


def _verdict(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else "FAILS" if row["faults"] else "holds"


if __name__ == "__main__":
    print("\n".join(side_by_side(*(json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:3]))))
