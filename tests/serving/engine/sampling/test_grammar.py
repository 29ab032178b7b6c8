"""Whatever a model's logits say, an answer that is held to a structure has it; what cannot be held to is refused."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from bundle.errors import EngineDeadError, ParameterError
from bundle.text import Tokenizer
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.grammar import Grammars
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams, Structure

MERGED = ('{"', '":', '","', '"}', "},", "true", "null", "12", ": ", ", ", "red", "é", "漢")
END = "<end>"


def byte_level_tokenizer() -> Tokenizer:
    """Bytes, some longer tokens that cross the borders of JSON's words, and an end token."""
    vocab = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in MERGED:
        letters = byte_level.pre_tokenize_str(text)[0][0]
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocab:
                vocab[letters[:end]] = len(vocab)
                merges.append((letters[: end - 1], letters[end - 1]))
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return Tokenizer(backend)


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's way: a blank is "▁", and what the vocabulary lacks is spelled in bytes."""
    letters = ["▁", *'{}[]":,abcdeghnorstuvl0123456789-.', '{"', '":', "▁1", "tr", "true", "red"]
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {letter: place for place, letter in enumerate(letters, len(vocab))}
    merges = [("{", '"'), ('"', ":"), ("▁", "1"), ("t", "r")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END])
    return Tokenizer(backend)


class Held:
    """A vocabulary and its grammars; V is larger than the vocabulary, as a padded head's is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size + 13
        self.end_id = tokenizer.token_id(END)
        assert self.end_id is not None
        self.grammars = Grammars(tokenizer, self.vocab_size, (self.end_id,), 2)

    def state(self, structure: Structure, **sampling: Any) -> SamplingState:
        matcher = self.grammars.compiled(structure)
        constraint = self.grammars.constraint(matcher, structure.param)
        return SamplingState(SamplingParams(**sampling), (), (self.end_id,), constraint)

    def answer(self, structure: Structure, seed: int, max_tokens: int = 400, haste: float = 4.0) -> str | None:
        """Return an answer by random logits; None where it is not at its end after so many tokens.

        Args:
            structure: That it is held to.
            seed: Of the logits.
            max_tokens: At most.
            haste: Added to the score of the end and of what closes, so that most answers end.
        """
        rng, state, ids = np.random.default_rng(seed), self.state(structure, temperature=1.0, seed=seed), []
        closing = [self.end_id, *(self.tokenizer.token_id(each) for each in '}]"')]
        for _ in range(max_tokens):
            logits = rng.normal(scale=2, size=(1, self.vocab_size)).astype(np.float32)
            logits[0, closing] += haste
            [choice] = Sampler().choose(logits, [state])
            assert isinstance(choice, Choice), choice
            if choice.token_id == self.end_id:
                return self.tokenizer.decode(ids)
            ids.append(choice.token_id)
        return None


@pytest.fixture(scope="module", params=[byte_level_tokenizer, byte_fallback_tokenizer], ids=["bytes", "fallback"])
def held(request: pytest.FixtureRequest) -> Any:
    made = Held(request.param())
    yield made
    made.grammars.close()


@pytest.fixture(scope="module")
def by_bytes() -> Any:
    made = Held(byte_level_tokenizer())
    yield made
    made.grammars.close()


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
def test_every_answer_is_a_value_of_its_schema(held: Held, schema: dict[str, Any], seed: int) -> None:
    text = held.answer(Structure("json", json.dumps(schema), "response_format"), seed)
    assert text is not None
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_is_a_json_object_where_only_that_is_asked_for(held: Held, seed: int) -> None:
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
def test_keywords_that_are_taken_are_kept(by_bytes: Held, name: str, seed: int) -> None:
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
def test_every_answer_matches_its_regular_expression(held: Held, pattern: str, seed: int) -> None:
    text = held.answer(Structure("regex", pattern, "guided_regex"), seed)
    assert text is not None
    assert re.fullmatch(pattern, text)


@given(
    choices=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True), seed=st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_one_of_its_choices(by_bytes: Held, choices: list[str], seed: int) -> None:
    assert by_bytes.answer(Structure("choice", json.dumps(choices), "guided_choice"), seed) in choices


@pytest.mark.parametrize("seed", range(10))
def test_every_answer_is_a_word_of_its_grammar(held: Held, seed: int) -> None:
    grammar = 'start: sum\nsum: term | sum "+" term\nterm: /[0-9]{1,2}/ | "(" sum ")"'
    text = held.answer(Structure("grammar", grammar, "guided_grammar"), seed, haste=8)
    if text is not None:
        assert re.fullmatch(r"[0-9+()]+", text)
        assert text.count("(") == text.count(")")
        eval(re.sub(r"\b0+(?=\d)", "", text))


def test_the_end_is_allowed_only_where_the_answer_is_whole(by_bytes: Held) -> None:
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


def test_answers_of_one_structure_go_their_own_ways(by_bytes: Held) -> None:
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
def test_what_cannot_be_held_to_is_refused_by_the_fields_name(by_bytes: Held, kind: Any, given_structure: Any) -> None:
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
def test_a_costly_structure_is_refused_or_followed_in_bounded_time(by_bytes: Held, kind: Any, text: str) -> None:
    """Alone, the slowest takes under three seconds to compile; ten leave room for a machine that others use too."""
    began_s = time.monotonic()
    structure = Structure(kind, text, "guided")
    try:
        state = by_bytes.state(structure, temperature=1.0, seed=0)
    except ParameterError:
        return
    finally:
        assert time.monotonic() - began_s < 10
    rng = np.random.default_rng(0)
    for _ in range(30):
        began_s = time.monotonic()
        [choice] = Sampler().choose(rng.normal(size=(1, by_bytes.vocab_size)).astype(np.float32), [state])
        assert time.monotonic() - began_s < 2.5
        if not isinstance(choice, Choice):
            assert isinstance(choice, ParameterError)
            return


def test_what_may_follow_is_found_on_another_thread(by_bytes: Held) -> None:
    used = []

    class Watched:
        def __init__(self) -> None:
            self._matcher = by_bytes.grammars.compiled(Structure("regex", "ab", "guided_regex"))

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


def test_a_structure_is_compiled_once(by_bytes: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = Structure("regex", "once", "guided_regex")
    by_bytes.grammars.compiled(structure)
    monkeypatch.setattr(by_bytes.grammars, "_compile", None)
    by_bytes.grammars.compiled(structure)


def test_a_tokenizer_that_cannot_be_used_refuses_structures_alone() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.add_special_tokens([END])
    grammars = Grammars(Tokenizer(backend), 2, (2,), 1)  # V is smaller than the vocabulary
    with pytest.raises(ParameterError, match="tokenizer"):
        grammars.compiled(Structure("regex", "a", "guided_regex"))
    grammars.close()


def test_a_model_that_likes_blanks_gets_one_between_two_words(by_bytes: Held) -> None:
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


def test_an_answer_that_begins_after_the_end_is_told_so() -> None:
    made = Held(byte_level_tokenizer())
    matcher = made.grammars.compiled(Structure("regex", "a", "guided_regex"))
    made.grammars.close()
    with pytest.raises(EngineDeadError):
        made.grammars.constraint(matcher, "guided_regex")
