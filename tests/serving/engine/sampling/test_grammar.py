"""Whatever a model's logits say, an answer that is held to a structure has it."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models

from bundle.errors import EngineDeadError, ParameterError
from bundle.text import Tokenizer
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.grammar import Grammars
from serving.engine.sampling.sampler import Sampler
from serving.protocol import Structure

LEAVES = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "maximum": 40},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"enum": ["red", 3, None, "é"]},
        {"const": "red"},
        {"type": ["integer", "null"]},
    ]
)
NAMES = st.sampled_from(["a", "b", "red", "é"])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
        required = list(properties)[:num_required]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(build, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3))


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


def unions(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda members: {"anyOf": members})


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: objects(inner) | arrays(inner) | unions(inner),
    max_leaves=6,
)


@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_a_value_of_its_schema(held: Any, schema: dict[str, Any], seed: int) -> None:
    text = held.answer(Structure("json", json.dumps(schema), "response_format"), seed)
    assert text is not None
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_is_a_json_object_where_only_that_is_asked_for(held: Any, seed: int) -> None:
    text = held.answer(Structure("json", '{"type": "object"}', "response_format"), seed, 2000)
    assert text is None or isinstance(json.loads(text), dict)


SUPPORTED: dict[str, dict[str, Any]] = {
    "itself": {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^a+$": {"type": "null"}},
        "additionalProperties": False,
    },
    "other names": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 3},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 9}, "b": {"type": "null"}}, "additionalProperties": False},
        ]
    },
    "first items": {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "maxItems": 3},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": -100, "maximum": 500},
    "a date": {"type": "string", "format": "date"},
    "a uuid": {"type": "string", "format": "uuid"},
    "bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "one of two kinds": {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SUPPORTED)
def test_keywords_that_are_taken_are_kept(by_bytes: Any, name: str, seed: int) -> None:
    schema = SUPPORTED[name]
    text = by_bytes.answer(Structure("json", json.dumps(schema), "response_format"), seed, 1500)
    assert text is not None
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


@given(
    pattern=st.sampled_from(
        [r"[0-9]{4}-[0-9]{2}", r"(red|12){1,3}", r"[a-c]*", r"-?\d+(\.\d+)?", r"(true|null)?", r"\{12\}/?", r"^12$"]
    ),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_matches_its_regular_expression(held: Any, pattern: str, seed: int) -> None:
    text = held.answer(Structure("regex", pattern, "guided_regex"), seed)
    assert text is not None
    assert re.fullmatch(pattern, text)


@given(
    choices=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True), seed=st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_one_of_its_choices(by_bytes: Any, choices: list[str], seed: int) -> None:
    assert by_bytes.answer(Structure("choice", json.dumps(choices), "guided_choice"), seed) in choices


@pytest.mark.parametrize("seed", range(10))
def test_every_answer_is_a_word_of_its_grammar(held: Any, seed: int) -> None:
    grammar = 'start: sum\nsum: term | sum "+" term\nterm: /[0-9]{1,2}/ | "(" sum ")"'
    text = held.answer(Structure("grammar", grammar, "guided_grammar"), seed, haste=8)
    if text is not None:
        assert re.fullmatch(r"[0-9+()]+", text)
        assert text.count("(") == text.count(")")
        eval(re.sub(r"\b0+(?=\d)", "", text))


def test_the_end_is_allowed_only_where_the_answer_is_whole(by_bytes: Any) -> None:
    state = by_bytes.state(Structure("regex", "12|123", "guided_regex"))
    constraint = state.constraint
    assert constraint is not None
    for text, may_end in (("1", False), ("2", True), ("3", True)):
        token_id = by_bytes.tokenizer.token_id(text)
        assert token_id is not None
        assert constraint.allowed(by_bytes.vocab_size)[token_id]
        constraint.take(token_id)
        assert bool(constraint.allowed(by_bytes.vocab_size)[by_bytes.end_id]) is may_end
    assert np.flatnonzero(constraint.allowed(by_bytes.vocab_size)).tolist() == [by_bytes.end_id]


def test_answers_of_one_structure_go_their_own_ways(by_bytes: Any) -> None:
    structure = Structure("regex", "ab|cd", "guided_regex")
    first, second = (by_bytes.state(structure).constraint for _ in range(2))
    assert first is not None
    assert second is not None
    a, b, c, d = (by_bytes.tokenizer.token_id(letter) for letter in "abcd")
    assert None not in (a, b, c, d)
    first.take(a)  # type: ignore[arg-type]
    second.take(c)  # type: ignore[arg-type]
    assert np.flatnonzero(first.allowed(by_bytes.vocab_size)).tolist() == [b]
    assert np.flatnonzero(second.allowed(by_bytes.vocab_size)).tolist() == [d]


def test_what_may_follow_is_found_on_another_thread(by_bytes: Any) -> None:
    used = []

    class Watched:
        def __init__(self) -> None:
            self._matcher = by_bytes.grammars.compiled(Structure("regex", "ab", "guided_regex")).matchers[0]

        def __getattr__(self, name: str) -> Any:
            used.append(threading.current_thread())
            return getattr(self._matcher, name)

    constraint = by_bytes.grammars.constraint(Watched(), "guided_regex")  # type: ignore[arg-type]
    a_id = by_bytes.tokenizer.token_id("a")
    assert a_id is not None
    assert constraint.allowed(by_bytes.vocab_size)[a_id]
    constraint.take(a_id)
    constraint.allowed(by_bytes.vocab_size)
    assert used
    assert threading.current_thread() not in used


def test_a_structure_is_compiled_once(by_bytes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = Structure("regex", "once", "guided_regex")
    by_bytes.grammars.compiled(structure)
    monkeypatch.setattr(by_bytes.grammars, "_judged", None)
    by_bytes.grammars.compiled(structure)


def test_a_tokenizer_that_cannot_be_used_refuses_structures_alone() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.add_special_tokens(["<end>"])
    grammars = Grammars(Tokenizer(backend), 2, (2,), 1)  # V is smaller than the vocabulary
    with pytest.raises(ParameterError, match="tokenizer"):
        grammars.compiled(Structure("regex", "a", "guided_regex"))
    grammars.close()


def test_a_token_that_has_no_logit_leaves_structures_to_the_others(by_bytes: Any) -> None:
    """As the image's in mllama's vocabulary: behind the last that the model can say."""
    backend = tokenizers.Tokenizer.from_str(by_bytes.tokenizer.text())
    num_logits = by_bytes.tokenizer.vocab_size
    backend.add_special_tokens([tokenizers.AddedToken("<an image>", special=True)])
    grammars = Grammars(Tokenizer(backend), num_logits, (by_bytes.end_id,), 1)
    [matcher] = grammars.compiled(Structure("choice", '["red", "blue"]', "structured_outputs.choice")).matchers
    allowed = grammars.constraint(matcher, "structured_outputs.choice").allowed(num_logits)
    assert allowed.shape == (num_logits,)
    assert {by_bytes.tokenizer.decode([token_id]) for token_id in np.flatnonzero(allowed)} == {"r", "re", "red", "b"}
    grammars.close()


def test_a_model_that_likes_blanks_gets_one_between_two_words(by_bytes: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "null"}, "maxItems": 2}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    state = by_bytes.state(Structure("json", json.dumps(schema), "response_format"))
    blanks = [by_bytes.tokenizer.encode(blank)[0] for blank in " \n\t"]
    ids = []
    for _ in range(60):
        logits = np.zeros((1, by_bytes.vocab_size), np.float32)
        logits[0, blanks] = 9
        [choice] = Sampler().choose(logits, [state])
        assert isinstance(choice, Choice)
        if choice.token_id == by_bytes.end_id:
            break
        ids.append(choice.token_id)
    text = by_bytes.tokenizer.decode(ids)
    jsonschema.validate(json.loads(text), schema)
    assert "  " not in text


def test_an_answer_that_begins_after_the_end_is_told_so(make_held) -> None:
    made = make_held()
    matcher = made.grammars.compiled(Structure("regex", "a", "guided_regex")).matchers[0]
    made.grammars.close()
    with pytest.raises(EngineDeadError):
        made.grammars.constraint(matcher, "guided_regex")


def first_bytes(state: Any, made: Any) -> set[str]:
    allowed = np.flatnonzero(state.constraint.allowed(made.vocab_size))
    return {made.tokenizer.decode([token_id])[:1] for token_id in allowed.tolist()}


def test_the_blank_with_which_a_model_begins_may_stand_before_a_structure_that_has_none(make_held) -> None:
    made = make_held(" ")
    try:
        for kind, text, begins, lead in (
            ("choice", '["red", "blue"]', {" ", "r", "b"}, " "),
            ("regex", "[0-9]{2}", {" ", *"0123456789"}, " "),
            ("json", '{"type": "boolean"}', {" ", "t", "f"}, " "),
            ("regex", " ?red", {" ", "r"}, ""),
            ("choice", '[" red", "blue"]', {" ", "b"}, ""),
            ("grammar", 'start: "red"', {"r"}, ""),
        ):
            structure = Structure(kind, text, "guided")
            assert made.grammars.compiled(structure).lead == lead, text
            assert first_bytes(made.state(structure), made) == begins, text
        state = made.state(Structure("choice", '["red"]', "guided"))
        state.take(made.tokenizer.token_id("Ġ"))
        assert first_bytes(state, made) == {"r"}  # one, and no more
    finally:
        made.grammars.close()


def test_answers_of_one_structure_share_no_limit(by_bytes: Any) -> None:
    """Copies of a matcher share its lexer: its states would add up, until nobody could use that structure again."""
    structure = Structure("regex", ".*[a-z0-9].{20}x", "guided_regex")
    for seed in range(40):  # copies fail from the fourteenth on
        by_bytes.answer(structure, seed, max_tokens=200, haste=-9.0)  # which looks at every choice
