"""What an answer cannot be held to is refused by the field's name; what costs much is bounded."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from bundle.errors import ParameterError
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.sampler import Sampler
from serving.protocol import Structure

REFUSED = {
    "a keyword that is not built": ("json", {"type": "array", "uniqueItems": True}),
    "a keyword that its own options would drop": ("json", {"not": {}, "x-guidance": {"lenient": True}}),
    "the same inside a grammar": ("grammar", 'start: %json {"not": {}, "x-guidance": {"lenient": true}}'),
    "a schema without a value": ("json", {"type": "integer", "minimum": 5, "maximum": 3}),
    "a schema on another machine": ("json", {"$ref": "http://127.0.0.1:9/x.json"}),
    "a schema in a file": ("json", {"$ref": "file:///etc/passwd"}),
    "a type that is none": ("json", {"type": "colour"}),
    "half a regular expression": ("regex", "[a"),
    "a look ahead": ("regex", "(?=a)b"),
    "a reference back": ("regex", r"(a)\1"),
    "no grammar": ("grammar", "nonsense"),
    "a rule of nothing but itself": ("grammar", "start: start"),
    "a rule that needs itself": ("grammar", 'start: a\na: "x" a'),
    "a schema that needs itself": ("json", {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "options of the server": ("grammar", '%llguidance {}\nstart: "a"'),
    "an expression without a match": ("regex", r"[^\s\S]"),
}


@pytest.mark.parametrize(("kind", "given_structure"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_held_to_is_refused_by_the_fields_name(by_bytes: Any, kind: Any, given_structure: Any) -> None:
    text = given_structure if isinstance(given_structure, str) else json.dumps(given_structure)
    with pytest.raises(ParameterError) as caught:
        by_bytes.grammars.compiled(Structure(kind, text, "guided"))
    assert caught.value.param == "guided"
    assert len(str(caught.value)) < 500
    assert "no_forcing" not in str(caught.value)
    assert "\n" not in str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


COSTLY = {
    "a deep schema": ("json", json.dumps(nested(300))),
    "deep brackets": ("regex", "(" * 5000 + "a" + ")" * 5000),
    "deep brackets in a grammar": ("grammar", "start: " + "(" * 20000 + '"a"' + ")" * 20000),
    "a string of 10^9 letters": ("json", '{"type": "string", "minLength": 1000000000, "maxLength": 1000000000}'),
    "10^9 repeats": ("regex", "a{1000000000}"),
    "repeats of repeats": ("regex", "((((a{50}){50}){50}){50}){50}"),
    "10^9 items": ("json", '{"type": "array", "items": {"const": "a"}, "minItems": 1000000000}'),
    "a schema of exponential size": (
        "json",
        json.dumps({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(18)], "type": "integer"}),
    ),
    "an expression of exponentially many states": ("regex", "(a|b)*a(a|b){1000}b"),
    "a grammar of exponential length": (
        "grammar",
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"',
    ),
    "tokens of exponential length": (
        "grammar",
        "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"',
    ),
    "many names": ("json", json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(1500)}})),
    "too many names": ("json", json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(9000)}})),
}


@pytest.mark.parametrize(("kind", "text"), COSTLY.values(), ids=COSTLY.keys())
def test_a_costly_structure_is_refused_or_followed_in_bounded_time(by_bytes: Any, kind: Any, text: str) -> None:
    """The slowest takes under three seconds of a processor to compile; ten leave room for a slower one."""
    began_s = time.process_time()
    structure = Structure(kind, text, "guided")
    try:
        state = by_bytes.state(structure, temperature=1.0, seed=0)
    except ParameterError:
        return
    finally:
        assert time.process_time() - began_s < 10
    rng = np.random.default_rng(0)
    for _ in range(30):
        began_s = time.process_time()
        [choice] = Sampler().choose(rng.normal(size=(1, by_bytes.vocab_size)).astype(np.float32), [state])
        assert time.process_time() - began_s < 2.5
        if not isinstance(choice, Choice):
            assert isinstance(choice, ParameterError)
            return
