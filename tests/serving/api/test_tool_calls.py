"""Calls are read out of an answer's text alike, however it is cut into pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.tool_calls import CallArguments, CallBegun, CallReader, SaidText

GOOD = '<tool_call>\n{"name": "weather", "arguments": {"city": "B}\\"ern", "at": {"x": [1]}}}\n</tool_call>'
ARGUMENTS = '{"city": "B}\\"ern", "at": {"x": [1]}}'
Told = tuple[str, list[tuple[str, str]]]

TEXTS: dict[str, tuple[str, Told]] = {
    "text": ("Hello, a < b.\n", ("Hello, a < b.\n", [])),
    "a call": (GOOD, ("", [("weather", ARGUMENTS)])),
    "text before": (f"I look.\n{GOOD}", ("I look.", [("weather", ARGUMENTS)])),
    "text around two": (f"One {GOOD}\n{GOOD}\n two", ("One\n two", [("weather", ARGUMENTS)] * 2)),
    "a list": (
        '<tool_call>[{"name": "weather", "arguments": {}}, {"name": "time", "arguments": {"a": 1}}]</tool_call>',
        ("", [("weather", "{}"), ("time", '{"a": 1}')]),
    ),
    "another order": (
        '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>',
        ("", [("time", '{"a": 1}')]),
    ),
    "arguments as a text": (
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("time", '{"a": 1}')]),
    ),
    "half a surrogate pair": (
        '<tool_call>{"arguments": {"a": "\\ud800"}, "name": "time"}</tool_call>',
        ("", [("time", '{"a": "\\ud800"}')]),
    ),
    "no end mark": ('<tool_call>{"name": "time", "arguments": {"a": 1}}', ("", [("time", '{"a": 1}')])),
    "no last brace": ('<tool_call>{"name": "time", "arguments": {"a": 1}</tool_call>', ("", [("time", '{"a": 1}')])),
    "cut arguments": ('<tool_call>{"name": "time", "arguments": {"a": ', ("", [("time", '{"a": ')])),
    "cut end mark": ('<tool_call>{"name": "time", "arguments": {"a": 1}}\n</to', ("", [("time", '{"a": 1}')])),
    "cut name": ('<tool_call>{"name": "ti', ('<tool_call>{"name": "ti', [])),
    "an unknown function": (
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
    ),
    "no JSON": ("<tool_call>weather(Bern)</tool_call> so", ("<tool_call>weather(Bern)</tool_call> so", [])),
    "half a mark": ("a <tool_cal", ("a <tool_cal", [])),
    "the mark alone": ("<tool_call>", ("<tool_call>", [])),
}


def read(pieces: Sequence[str]) -> Told:
    reader = CallReader(["weather", "time"])
    said = [each for piece in pieces for each in reader.push(piece)] + reader.finish()
    calls: list[list[str]] = []
    for each in said:
        if isinstance(each, CallBegun):
            assert each.place == len(calls)
            assert each.id.startswith("call_")
            calls.append([each.name, ""])
        elif isinstance(each, CallArguments):
            assert each.place == len(calls) - 1
            calls[-1][1] += each.text
    assert reader.num_calls == len(calls)
    return "".join(each.text for each in said if isinstance(each, SaidText)), [(name, text) for name, text in calls]


@pytest.mark.parametrize("name", TEXTS)
def test_calls_are_read_whole_and_letter_by_letter(name: str) -> None:
    text, expected = TEXTS[name]
    assert read([text]) == read(list(text)) == expected


@given(text=st.sampled_from([text for text, _ in TEXTS.values()]), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_where_an_answer_is_cut_changes_nothing(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    assert read([text[start:end] for start, end in pairwise(places)]) == read([text])


def test_blanks_before_after_and_between_calls_take_their_share_of_time_and_no_more() -> None:
    def read_s(size: int) -> float:
        blanks = [" "] * size
        began_s = time.process_time()
        assert read(["<tool_call>", *blanks, '{"name": "time"', ', "arguments": {}}</tool_call>'])[0] == ""
        assert read([GOOD.removesuffix("</tool_call>"), *blanks, "</tool_call>"]) == ("", [("weather", ARGUMENTS)])
        assert read(["a", *blanks, "b"])[0] == f"a{' ' * size}b"
        return time.process_time() - began_s

    short_s = min(read_s(2_000) for _ in range(3))
    long_s = min(read_s(32_000) for _ in range(2))  # 16 times as many; by squares, it would be 256 times
    assert long_s < 64 * short_s + 0.2


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_call_that_does_not_end_is_text_once_it_is_too_long_to_be_held(size: int) -> None:
    text = "<tool_call>" + " " * 70_000 + '{"name": "time", "arguments": {}}</tool_call> so ' + GOOD
    told = read([text[start : start + size] for start in range(0, len(text), size)])
    assert told == (text.removesuffix(GOOD).rstrip(), [("weather", ARGUMENTS)])


def test_what_is_held_is_told_before_the_answer_ends() -> None:
    reader = CallReader(["time"])
    said = [each for _ in range(100) for each in reader.push("<tool_call>" + "x" * 1000)]
    assert sum(len(each.text) for each in said if isinstance(each, SaidText)) > 30_000


def test_arguments_are_told_as_they_come() -> None:
    reader = CallReader(["weather"])
    assert reader.push('<tool_call>\n{"name": "weather", "arguments": ') == []
    begun, arguments = reader.push('{"city": ')
    assert isinstance(begun, CallBegun)
    assert arguments == CallArguments(0, '{"city": ')


def test_ids_differ() -> None:
    reader = CallReader(["weather"])
    ids = {each.id for each in reader.push(GOOD * 5) if isinstance(each, CallBegun)}
    assert len(ids) == 5
    assert json.loads(ARGUMENTS)
