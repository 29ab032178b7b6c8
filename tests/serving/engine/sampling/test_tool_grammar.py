"""Whatever a model's logits say, the calls in its answer are of offered functions, with arguments of their schemas."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import tokenizers

from bundle.errors import ParameterError
from bundle.text import Tokenizer
from serving.engine.sampling.grammar import Grammars
from serving.protocol import Structure

TOOLS = {
    "weather": {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}, "in": {"enum": ["red", "é"]}},
        "required": ["days"],
        "additionalProperties": False,
    },
    "stop": {"type": "object", "properties": {}, "additionalProperties": False},
}
CALL = re.compile(r'<tool_call>\n?\[?\{"name": "(\w+)", "arguments": (\{.*?\})\}\]?\n?</tool_call>', re.DOTALL)


def structure(most: int = 3, *, is_required: bool = True) -> Structure:
    tools = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
    return Structure("tools", json.dumps({"tools": tools, "most": most, "is_required": is_required}), "tools")


@pytest.mark.parametrize("seed", range(30))
def test_required_answer_is_calls_of_offered_functions_alone(held: Any, seed: int) -> None:
    text = held.answer(structure(), seed, 400)
    assert text is not None
    calls = CALL.findall(text)
    assert 1 <= len(calls) <= 3
    assert CALL.sub("", text).strip() == ""
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), TOOLS[name])


@pytest.mark.parametrize("seed", range(5))
def test_one_call_is_one(held: Any, seed: int) -> None:
    text = held.answer(structure(1), seed, 400)
    assert text is not None
    assert len(CALL.findall(text)) == 1


GOOD = '<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>'
FREE = {
    "text": ("Hello <there>.", True),
    "a call": (GOOD, True),
    "a list of one": (GOOD.replace("\n", "").replace("call>{", "call>[{").replace("}<", "}]<"), True),
    "text around two calls": (f"I look. {GOOD}\n{GOOD} Done.", True),
    "nothing": ("", True),
    "an unknown function": (GOOD.replace("weather", "whether"), False),
    "arguments off the schema": (GOOD.replace("3", "10"), False),
    "a second call that is none": (f"{GOOD} and <tool_call> what?", False),
    "four calls": (GOOD * 4, False),
}


@pytest.mark.parametrize("name", FREE)
def test_free_answer_may_say_anything_and_call_rightly(by_bytes: Any, name: str) -> None:
    text, is_allowed = FREE[name]
    [matcher] = by_bytes.grammars.compiled(structure(is_required=False)).matchers
    followed = all(matcher.consume_token(token_id) for token_id in by_bytes.tokenizer.encode(text))
    assert (followed and matcher.is_accepting()) is is_allowed


@pytest.fixture
def with_marks(by_bytes: Any) -> Any:
    """A vocabulary in which the marks are control tokens."""
    backend = tokenizers.Tokenizer.from_str(by_bytes.tokenizer.text())
    backend.add_special_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = Tokenizer(backend)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [by_bytes.end_id], 1)
    yield tokenizer, grammars
    grammars.close()


@pytest.mark.parametrize("is_required", [True, False])
def test_marks_that_are_tokens_are_asked_for_as_tokens(with_marks: Any, is_required: bool) -> None:
    tokenizer, grammars = with_marks
    asked = structure(is_required=is_required)
    [matcher] = grammars.compiled(asked).matchers
    assert all(matcher.consume_token(token_id) for token_id in tokenizer.encode(GOOD))
    assert matcher.is_accepting()
    [fresh] = grammars.compiled(asked).matchers
    spelled = [fresh.consume_token(token_id) for token_id in tokenizer.encode_plain("<tool_call>")]
    assert all(spelled) is not is_required  # as text, it is text


@pytest.mark.parametrize(
    "schema",
    [{"type": "object", "x-guidance": {"lenient": True}}, {"type": "object", "not": {}}, {"$ref": "#"}],
    ids=["own options", "unbuilt", "endless"],
)
def test_schema_that_cannot_be_followed_is_refused(by_bytes: Any, schema: dict[str, Any]) -> None:
    text = json.dumps({"tools": [{"name": "a", "parameters": schema}], "most": 1, "is_required": True})
    with pytest.raises(ParameterError) as caught:
        by_bytes.grammars.compiled(Structure("tools", text, "tool_choice"))
    assert caught.value.param == "tool_choice"


def either(kind: str = "json", text: str = "", **tools: Any) -> Structure:
    """Calls, or an answer of a structure of its own."""
    asked = json.loads(structure(is_required=False, **tools).text)
    answer = {"kind": kind, "text": text or json.dumps(PLACE)}
    return Structure("tools", json.dumps({**asked, "answer": answer}), "response_format")


PLACE = {
    "type": "object",
    "properties": {"at": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["at"],
    "additionalProperties": False,
}
LARK = 'start: "so " inner\ninner: /[a-c]/ "}"'
"""A grammar with a brace, and a rule of its own."""
EITHER = {
    "an answer": ("json", "", '{"at": 3}', True),
    "a call": ("json", "", GOOD, True),
    "two calls": ("json", "", f"{GOOD}\n{GOOD}", True),
    "both": ("json", "", '{"at": 3}' + GOOD, False),
    "a call, and an answer": ("json", "", GOOD + '{"at": 3}', False),
    "text": ("json", "", "Hello.", False),
    "nothing": ("json", "", "", False),
    "an answer off its schema": ("json", "", '{"at": "3"}', False),
    "arguments off their schema": ("json", "", GOOD.replace("3", "10"), False),
    "a match": ("regex", "[a-c]{3}", "abc", True),
    "no match": ("regex", "[a-c]{3}", "abd", False),
    "a call beside a pattern of anything": ("regex", "(.|\\n)*", GOOD, True),
    "a text of some": ("choice", '["red", "blue"]', "blue", True),
    "a text of none": ("choice", '["red", "blue"]', "green", False),
    "a call beside some texts": ("choice", '["red", "blue"]', GOOD, True),
    "a word of a grammar": ("grammar", LARK, "so b}", True),
    "no word of a grammar": ("grammar", LARK, "so d}", False),
    "a call beside a grammar": ("grammar", LARK, GOOD, True),
}


@pytest.mark.parametrize("name", EITHER)
@pytest.mark.parametrize("lead", ["", " "], ids=["", "led"])
def test_an_answer_is_calls_or_its_own_structure(make_held: Any, name: str, lead: str) -> None:
    kind, asked, text, is_allowed = EITHER[name]
    held = make_held(lead)
    compiled = held.grammars.compiled(either(kind, asked))
    [matcher] = compiled.matchers
    followed = all(matcher.consume_token(token_id) for token_id in held.tokenizer.encode(compiled.lead + text))
    assert (followed and matcher.is_accepting()) is is_allowed
    held.grammars.close()


@pytest.mark.parametrize("seed", range(10))
def test_answers_by_chance_are_calls_or_values_of_the_schema(held: Any, seed: int) -> None:
    text = held.answer(either(), seed, 400)
    assert text is not None
    if calls := CALL.findall(text):
        assert CALL.sub("", text).strip() == ""
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), TOOLS[name])
    else:
        jsonschema.validate(json.loads(text), PLACE)


@pytest.mark.parametrize(
    ("asked", "param", "word"),
    [
        (either("json", '{"type": "object", "not": {}}'), "response_format", "response_format cannot be followed"),
        (either("json", '{"$ref": "#"}'), "response_format", "needs itself"),
        (either("grammar", "%llguidance {}"), "response_format", "the server's own"),
        (
            Structure(
                "tools",
                json.dumps(
                    {
                        "tools": [{"name": "a", "parameters": {"type": "object", "not": {}}}],
                        "most": 1,
                        "is_required": False,
                        "answer": {"kind": "json", "text": "{}"},
                    }
                ),
                "response_format",
            ),
            "tools",
            "beside response_format",
        ),
    ],
    ids=["answer", "endless", "own line", "tools"],
)
def test_which_of_tools_and_answer_cannot_be_followed_is_said(
    by_bytes: Any, asked: Structure, param: str, word: str
) -> None:
    with pytest.raises(ParameterError, match=word) as caught:
        by_bytes.grammars.compiled(asked)
    assert caught.value.param == param
