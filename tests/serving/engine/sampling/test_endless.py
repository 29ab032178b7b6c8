import time
from typing import Any

import numpy as np
import pytest

from serving.engine.sampling.endless import grammar_can_end, schema_can_end

SCHEMAS: dict[str, tuple[dict[str, Any], bool]] = {
    "anything": ({}, True),
    "itself": ({"$ref": "#"}, False),
    "itself within": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, False),
    "itself, if wanted": ({"properties": {"a": {"$ref": "#"}}}, True),
    "itself or null": ({"properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]}, True),
    "each other": (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1},
                "b": {"$ref": "#/$defs/a"},
            },
        },
        False,
    ),
    "a list of itself": ({"type": "array", "items": {"$ref": "#"}}, True),
    "a first item": ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, False),
    "a list or a number": ({"type": ["array", "number"], "items": {"$ref": "#"}, "minItems": 1}, True),
    "all of itself": ({"allOf": [{"type": "object"}, {"$ref": "#"}]}, False),
    "a name with a slash": ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, True),
    "a reference to nothing": ({"$ref": "#/$defs/a"}, True),
}


@pytest.mark.parametrize(("schema", "can_end"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_ends_where_some_value_is_finite(schema: dict[str, Any], can_end: bool) -> None:
    assert schema_can_end(schema) is can_end


GRAMMARS: dict[str, tuple[str, bool]] = {
    "a word": ('start: "a"', True),
    "itself": ("start: start", False),
    "more of itself": ('start: "a" start', False),
    "more of itself or an end": ('start: "a" start | "b"', True),
    "the end in the next line": ('start: "a" start\n     | "b"', True),
    "an optional self": ('start: "a" start?', True),
    "an optional self in brackets": ('start: "a" [start]', True),
    "some of itself": ('start: "a" (start | start "b")+', False),
    "any number of itself": ('start: "a" (start | start "b")*', True),
    "none or more by count": ('start: "a" start{0,3}', True),
    "one or more by count": ('start: "a" start{1,3}', False),
    "one or more by tilde": ('start: "a" start~1..3', False),
    "two that need each other": ('start: a\na: "x" b\nb: "y" a', False),
    "two of which one ends": ('start: a\na: "x" b\nb: "y" a | "z"', True),
    "a bar in a string": ('start: "a|b" start', False),
    "a bar in an expression": ("start: /a|b/ start", False),
    "a bar in a comment": ('start: "a" start // | "b"', False),
    "terminals": ("start: A\nA: /x/ | B\nB: /y/", True),
    "options of a rule": ('start: a\na[max_tokens=3]: "x" a', False),
    "a schema within": ('start: "a" %json {"type": "object", "x": "|"} start', False),
    "a schema alone": ('start: %json {"type": "object"}', True),
    "an alias": ('start: "a" start -> more\n | "b" -> last', True),
    "an import": ("%import common.INT\nstart: INT", True),
    "nothing": ("start:", True),
    "all lines moved in": ('    start: "a"\n', True),
    "a rule in a comment": ('start: "a" # see start', True),
    "a bar in a comment by #": ('start: "a" start # | "b"', False),
    "an open string in a comment": ('start: "a" start # "\n     | "b"', True),
    "a schema in a comment": ('start: "a" start // %json {\n     | "b" // }', True),
    "signs of comments in a string": ('start: "# //" start | "//" start', False),
    "signs of comments in an expression": (r"start: /#\/\// start | /[#]/ start", False),
    "signs of comments in a schema": ('start: %json {"const": "# //"} start | "b" start', False),
    "an expression over two lines": ("start: /a\n# | b/ start", False),
}


@pytest.mark.parametrize(("grammar", "can_end"), GRAMMARS.values(), ids=GRAMMARS.keys())
def test_a_grammar_ends_where_it_has_a_word(grammar: str, can_end: bool) -> None:
    assert grammar_can_end(grammar) is can_end


UNCLOSED = {
    "escaped quotes in a comment": ('start: "a" # "', r"\""),
    "escaped quotes": ('start: "', r"\""),
    "escaped strokes": ("start: /a", r"\/"),
    "special tokens": ("start: ", "<"),
    "counts": ('start: "a"', "{1"),
    "schemas": ("start: ", '%json {"a": '),
    "options": ("start", "["),
    "names and blanks": ("start: ", "-> \n "),
}


@pytest.mark.parametrize(("begun", "piece"), UNCLOSED.values(), ids=UNCLOSED.keys())
def test_a_longer_grammar_takes_no_more_than_its_share_of_time(begun: str, piece: str) -> None:
    def read_s(size: int) -> float:
        grammar = begun + piece * (size // len(piece))
        began_s = time.process_time()
        grammar_can_end(grammar)
        return time.process_time() - began_s

    short_s = min(read_s(4_000) for _ in range(3))
    long_s = min(read_s(64_000) for _ in range(3))  # 16 times as long; by squares, it would be 256 times
    assert long_s < 64 * short_s + 0.2


@pytest.mark.parametrize("step", [1, -1])
def test_a_long_chain_of_rules_is_followed_in_either_order(step: int) -> None:
    rules = [f"r{i}: r{i + 1}" for i in range(3000)][::step]
    assert grammar_can_end("start: r0\n" + "\n".join([*rules, 'r3000: "a"']))
    assert not grammar_can_end("start: r0\n" + "\n".join([*rules, "r3000: r0"]))


def test_what_would_take_too_long_counts_as_ending() -> None:
    names = np.random.default_rng(0).permutation(3000)
    rules = "\n".join(f"r{a}: r{b} r0" for a, b in zip(names, [*names[1:], names[0]], strict=True))
    began_s = time.process_time()
    grammar_can_end(f"start: r0\n{rules}")
    mutual = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{j}"} for j in range(60)]} for i in range(60)}
    schema_can_end({"$ref": "#/$defs/a0", "$defs": mutual})
    assert time.process_time() - began_s < 10  # of a processor; one, usually
