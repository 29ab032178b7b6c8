"""Events come out whole, wherever the network cuts the bytes."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.sse import ChatDelta, ServerSentEvent, SSEParser, read_delta

LINE_ENDS = ("\n", "\r\n", "\r")
lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), min_size=1, max_size=20)
payloads = st.lists(st.lists(lines, min_size=1, max_size=3), max_size=6)


def parse(pieces: list[bytes]) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@settings(deadline=None)  # the machine may be busy
@given(payloads, st.sampled_from(LINE_ENDS), st.lists(st.integers(0, 10_000)))
def test_events_do_not_depend_on_where_the_bytes_are_cut(payloads: list[list[str]], end: str, cuts: list[int]) -> None:
    text = "".join("".join(f"data: {line}{end}" for line in data) + end for data in payloads)
    body = text.encode() + b": the end\n"  # a stream may stop at a lone carriage return, which waits for a line feed
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    expected = ["\n".join(data) for data in payloads]
    assert [event.data for event in parse(pieces)] == expected
    assert [event.data for event in parse([bytes([byte]) for byte in body])] == expected


def test_events_come_out_byte_by_byte_with_a_character_split_in_the_middle() -> None:
    body = "data: héllo ✓\n\n".encode()
    assert parse([bytes([byte]) for byte in body]) == [ServerSentEvent("héllo ✓")]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b": keep-alive\n\ndata: a\n\n", [ServerSentEvent("a")]),
        (b"event: error\ndata: no\n\n", [ServerSentEvent("no", "error")]),
        (b"event: error\n\ndata: a\n\n", [ServerSentEvent("a")]),
        (b"data:a\ndata:  b\n\n", [ServerSentEvent("a\n b")]),
        (b"id: 7\nretry: 10\nother: x\ndata: a\n\n", [ServerSentEvent("a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [ServerSentEvent("a")]),
        (b"data\n\ndata: a\n\n", [ServerSentEvent("a")]),
        (b"data: a\n\ndata: cut off\n", [ServerSentEvent("a")]),
        (b"", []),
    ],
    ids=["comment", "named", "name-alone", "joined", "unknown-fields", "byte-order-mark", "empty", "cut", "nothing"],
)
def test_the_standards_cases(body: bytes, events: list[ServerSentEvent]) -> None:
    assert parse([body]) == events


def chunk(**fields: object) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(fields))


def test_text_usage_finish_reason_and_end_are_read_from_chat_chunks() -> None:
    events = [
        chunk(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}], usage=None),
        chunk(choices=[{"delta": {"content": "a red"}, "finish_reason": None}]),
        chunk(choices=[{"delta": {}, "finish_reason": "length"}]),
        chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2}),
        ServerSentEvent("[DONE]"),
    ]
    assert [read_delta(event) for event in events] == [
        ChatDelta(),
        ChatDelta(text="a red"),
        ChatDelta(finish_reason="length"),
        ChatDelta(output_tokens=2),
        ChatDelta(is_done=True),
    ]


@pytest.mark.parametrize(
    "event",
    [
        chunk(error={"message": "the engine died", "type": "server_error"}),
        ServerSentEvent('{"message": "the engine died"}', "error"),
        chunk(error="the engine died"),
    ],
)
def test_an_error_event_is_an_error_with_the_servers_words(event: ServerSentEvent) -> None:
    assert read_delta(event).error == "the engine died"


@pytest.mark.parametrize("data", ["{", "[]", "7", "null", '{"choices": [{}]}', '{"choices": [{"delta": 3}]}'])
def test_a_malformed_chunk_is_an_error_and_not_a_crash(data: str) -> None:
    assert read_delta(ServerSentEvent(data)).error is not None
