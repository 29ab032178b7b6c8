"""Which served model each kind of user asks, and how many users of each kind there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASK_OF_KIND = {"chat": "image-text-to-text", "embed": "dual-encoder", "classify": "dual-encoder"}
"""User kind to the task, as `/v1/models` names it, of the model that it needs."""

DEFAULT_MIX = "chat=2,embed=1,classify=1"
"""Users of each kind relative to the others."""


def parse_mix(text: str) -> dict[str, int]:
    """Return the weight of each user kind from a text like `chat=2,embed=1`.

    Raises:
        ValueError: A kind is unknown or twice there, a weight is not a whole number of at least 1.
    """
    weights: dict[str, int] = {}
    for pair in text.split(","):
        kind, _, number = pair.strip().partition("=")
        if kind not in TASK_OF_KIND or kind in weights:
            raise ValueError(f"mix {text!r}: {kind!r} must be one of {', '.join(TASK_OF_KIND)}, each at most once")
        if not number.isascii() or not number.isdigit() or int(number) < 1:
            raise ValueError(f"mix {text!r}: the weight of {kind} must be a whole number of at least 1, not {number!r}")
        weights[kind] = int(number)
    return weights


def choose_models(listing: Mapping[str, Any], kinds: Mapping[str, int]) -> dict[str, str]:
    """Return the first served model of the task that each user kind needs.

    Args:
        listing: The body of `/v1/models`.
        kinds: User kinds wanted.

    Raises:
        ValueError: The body is not a listing, or no served model does what a kind needs.
    """
    first_of_task: dict[str, str] = {}
    try:
        for card in listing["data"]:
            first_of_task.setdefault(card["task"], card["id"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"/v1/models did not answer with models and their tasks: {str(listing)[:200]}") from error
    lacking = [kind for kind in kinds if TASK_OF_KIND[kind] not in first_of_task]
    if lacking:
        served = ", ".join(f"{name} ({task})" for task, name in first_of_task.items()) or "nothing"
        able = ",".join(f"{kind}={kinds[kind]}" for kind in kinds if kind not in lacking)
        way_out = f" Leave them out with --mix {able}." if able else ""
        raise ValueError(f"no served model can {' or '.join(lacking)}; the server has {served}.{way_out}")
    return {kind: first_of_task[TASK_OF_KIND[kind]] for kind in kinds}
