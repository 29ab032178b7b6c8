"""A Jetson's power mode: which clocks and cores nvpmodel lets it have, read without root and without nvpmodel.

/var/lib/nvpmodel/status     pmode:0002             what nvpmodel wrote when it was set last
/etc/nvpmodel.conf           < POWER_MODEL ID=2 NAME=MAXN_SUPER >
                             < PM_CONFIG DEFAULT=1 >      what holds until it is set for the first time
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/var/lib/nvpmodel/status")
_CONFIG = Path("/etc/nvpmodel.conf")
_SET = re.compile(r"pmode:(\d+)")
_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>", re.MULTILINE)


@dataclass(frozen=True)
class PowerMode:
    """The mode that a board is in.

    Attributes:
        number: As `nvpmodel -m` takes it.
        name: Such as "15W" or "MAXN_SUPER"; empty where the board's table does not say.
        others: Names of the modes that it could be in, in the table's order.
    """

    number: int
    name: str
    others: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in words."""
        others = f" (others: {', '.join(self.others)})" if self.others else ""
        return f"{self.name or 'without a name'}, number {self.number}{others}"


def power_mode(status: Path = _STATUS, config: Path = _CONFIG) -> PowerMode | None:
    """Return the mode; None on machines that have none, or do not say."""
    table = _read(config)
    names = {int(number): name for number, name in _MODE.findall(table)}
    found = _SET.search(_read(status)) or _DEFAULT.search(table)
    if found is None:
        return None
    number = int(found[1])
    return PowerMode(number, names.get(number, ""), tuple(name for each, name in names.items() if each != number))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
