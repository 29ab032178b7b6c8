"""Who is silent for too long, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Patience:
    """How long something with work at hand may be silent.

    Attributes:
        stall_timeout_s: After it, what waits fails, nothing new is taken, and readiness turns red, until it goes on.
        restart_timeout_s: After it, liveness turns red as well: only a restart of the process helps.
    """

    stall_timeout_s: float
    restart_timeout_s: float


class Watched(Protocol):
    """Something that works on a thread of its own and may hang there.

    Attributes:
        name: For messages.
    """

    name: str

    @property
    def fault(self) -> str:
        """Why nothing can be served now; empty when it can."""
        ...

    @property
    def needs_restart(self) -> bool:
        """True when only a restart of the process helps."""
        ...

    def relieve(self) -> None:
        """Fail what waits for something that hangs; to be called every now and then, from any thread."""
        ...
