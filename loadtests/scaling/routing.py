"""What routing by content is worth: `python -m loadtests.scaling.routing BUNDLE`.

Several people chat about an image each, turn by turn, with a model of several replicas, once by each way of routing.
What was not read again is told by the answers' own `usage`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np

from bundle.errors import MachineError, PocketVLMError
from loadtests.images import draw_image, image_part
from loadtests.questions import QUESTIONS
from loadtests.scaling.nodes import serving_nodes
from serving.ray_settings import Routing

_TIMEOUT_S = 300.0
_MAX_TOKENS = 8
_IMAGE_PX = 256


@dataclass(frozen=True)
class Hits:
    """What became of the turns behind the first: those that could find something.

    Attributes:
        routing: How replicas were chosen.
        num_turns: Of all conversations together.
        prompt_tokens: Of these turns.
        cached_tokens: Those of them that were not read again.
        image_tokens: Of these turns.
        cached_image_tokens: Those of them whose image was not encoded again.
        p50_ms: Median time of a turn.
    """

    routing: str
    num_turns: int
    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    cached_image_tokens: int
    p50_ms: float


def measure(bundle: Path, routing: str, replicas: int, conversations: int, turns: int) -> Hits:
    """Let all conversations run at once on a cluster of its own, and return what was found.

    Raises:
        PocketVLMError: The bundle is refused, or a turn was not answered.
    """
    generator = {"num_cpus": 1, "min_replicas": replicas, "max_replicas": replicas}
    ray = {"ingress_replicas": 2, "ingress_num_cpus": 0.25, "generator": generator, "routing": routing}
    settings = {"engine": {"intra_threads": 1}, "ray": ray}
    with serving_nodes(bundle, replicas, settings) as (url, _), ThreadPoolExecutor(conversations) as people:
        told = list(people.map(lambda number: list(_conversation(url, number, turns)), range(conversations)))
    later = [turn for each in told for turn in each[1:]]
    prompt, cached, image, cached_image = (sum(column) for column in zip(*(each for each, _ in later), strict=True))
    p50_ms = float(np.median([took_ms for _, took_ms in later]))
    return Hits(routing, len(later), prompt, cached, image, cached_image, p50_ms)


def _conversation(url: str, number: int, turns: int) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    """Yield each turn's counts, as of `Hits`, and its milliseconds."""
    shown = {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [image_part(draw_image(number, _IMAGE_PX)), shown]}]
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
        for turn in range(turns):
            started_s = time.perf_counter()
            body = {"messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}
            response = client.post(f"{url}/v1/chat/completions", json=body)
            took_ms = (time.perf_counter() - started_s) * 1e3
            if response.status_code != httpx.codes.OK:
                raise MachineError(
                    f"turn {turn} of conversation {number}: {response.status_code} {response.text[:200]}"
                )
            answer = response.json()
            usage = answer["usage"]
            details = usage["prompt_tokens_details"]
            cached = details["cached_tokens"], details["image_tokens"], details["cached_image_tokens"]
            yield (usage["prompt_tokens"], *cached), took_ms
            said = answer["choices"][0]["message"]["content"] or "."
            question = QUESTIONS[(number + turn + 1) % len(QUESTIONS)]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scaling.routing",
        description="What routing by content is worth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a vision-language bundle")
    parser.add_argument("--replicas", type=int, default=3, help="of the model, each on a raylet of its own")
    parser.add_argument("--conversations", type=int, default=6, help="at once, each about an image of its own")
    parser.add_argument("--turns", type=int, default=4, help="of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = list[Hits]()
    try:
        for routing in get_args(Routing):
            found.append(measure(options.bundle, routing, options.replicas, options.conversations, options.turns))
            if not options.json:
                print(_line(found[-1]), flush=True)  # the other one takes a cluster of its own, and minutes
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    return 0


def _line(hits: Hits) -> str:
    share, image_share = hits.cached_tokens / hits.prompt_tokens, hits.cached_image_tokens / max(hits.image_tokens, 1)
    return (
        f"{hits.routing:8s} {hits.num_turns} turns behind the first: {share:.0%} of {hits.prompt_tokens} prompt tokens "
        f"and {image_share:.0%} of {hits.image_tokens} image tokens found; median {hits.p50_ms:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
