"""`pocketvlm serve` with a fault that is switched on from outside: the file $FAULT_FILE says which, or nothing.

Its words are what happens and where: "raise", "memory", "exit" or "hang", and "decoder", "vision" or "sampler".
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pocketvlm
from serving.engine.runner import Runner
from serving.engine.sampling.sampler import Sampler
from serving.models.vision import VisionStage

_LOOK_EVERY_S = 0.05
_PLACES = {"decoder": (Runner, "run"), "vision": (VisionStage, "run"), "sampler": (Sampler, "choose")}


def current_fault() -> str:
    """Return the fault that is switched on; empty where none is."""
    return Path(os.environ["FAULT_FILE"]).read_text(encoding="utf-8").strip()


def suffer(place: str) -> None:
    """Fail or hang here, if that is the fault.

    Raises:
        RuntimeError: "raise".
        MemoryError: "memory".
        SystemExit: "exit".
    """
    kind, _, where = current_fault().partition(" ")
    if where != place:
        return
    if kind == "raise":
        raise RuntimeError("injected")
    if kind == "memory":
        raise MemoryError("injected")
    if kind == "exit":
        raise SystemExit("injected")
    while current_fault() == f"hang {place}":
        time.sleep(_LOOK_EVERY_S)


def make_faulty(owner: type, method: str, place: str) -> None:
    """Let a method suffer before it does its work."""
    plain = getattr(owner, method)

    def faulty(*args: Any, **kwargs: Any) -> Any:
        suffer(place)
        return plain(*args, **kwargs)

    setattr(owner, method, faulty)


def main() -> None:
    """Serve, and suffer as the file says."""
    for place, (owner, method) in _PLACES.items():
        make_faulty(owner, method, place)
    pocketvlm.main()


if __name__ == "__main__":
    main()
