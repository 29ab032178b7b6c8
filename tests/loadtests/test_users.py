"""What counts as a whole answer. Locust replaces blocking calls on import, so each program runs in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = 'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}\n\n'
END = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\n'
DONE = "data: [DONE]\n\n"


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "usage": ((TEXT, TEXT, END, USAGE, DONE), "9 1 True"),
    "no usage": ((TEXT, TEXT, TEXT, END, DONE), "3 2 True"),
    "no text": ((END, USAGE, DONE), "9 0 False"),
    "no last event": ((TEXT, END), "the stream ended before its last event"),
    "no finish reason": ((TEXT, DONE), "the stream ended before its last event"),
    "nothing": ((), "the stream ended before its last event"),
    "error": ((TEXT, 'data: {"error": {"message": "out of memory"}}\n\n', DONE), "in the stream: out of memory"),
    "malformed": ((TEXT, "data: gibberish\n\n", END, DONE), "in the stream: not a chat chunk: gibberish"),
}
PROGRAM = """
import json, sys
from loadtests.users import ChatUser, Clock, RequestFailedError

def read(pieces):
    clock = Clock(started_s=0.0)
    try:
        ChatUser.read_answer(None, iter([piece.encode() for piece in pieces]), clock)
    except RequestFailedError as error:
        return str(error)
    return f"{clock.output_tokens} {len(clock.gaps_ms)} {clock.ttft_ms is not None}"

print(json.dumps([read(pieces) for pieces in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """What a chat user makes of each stream: its tokens, gaps and whether text came, or why it failed."""
    streams = json.dumps([pieces for pieces, _ in CASES.values()])
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, input=streams, capture_output=True, text=True, check=True)
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_stream_counts_only_when_it_is_whole(found: dict[str, str], name: str) -> None:
    assert found[name] == CASES[name][1]
