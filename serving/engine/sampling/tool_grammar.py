"""The grammar of an answer that calls functions: their marks, their names, and arguments that follow their schemas.

An answer is nothing but calls, or nothing but calls or what else it shall be, or text in which every call is held to
this form from its opening mark on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bundle.tools import CALL_END, CALL_START

_ANYTHING = r"(.|\n)*"


def tool_grammar(
    text: str, special_texts: frozenset[str], json_rule: Callable[[Any], str], answer_rule: str | None = None
) -> str:
    """Return the grammar, in llguidance's dialect of Lark.

    Args:
        text: A JSON object. `tools`: each a name and its schema, `parameters`. `most`: calls in one answer.
            `is_required`: the answer is nothing but calls, and at least one.
            `answer`: what it is where it holds no call; not of an answer that is required to call.
        special_texts: Tokens of the vocabulary that are no text, and are asked for as tokens.
        json_rule: From a schema to what stands for its values in a grammar.
        answer_rule: What stands for `answer`, where there is one.
    """
    asked = json.loads(text)
    start, end = (each if each in special_texts else json.dumps(each) for each in (CALL_START, CALL_END))
    functions = [f"function_{place}" for place in range(len(asked["tools"]))]
    if answer_rule is not None:
        rules = ["start: calls | said", *_calls("calls", start, asked["most"]), f"said: {answer_rule}"]
    else:
        rules = _calls("start", start, asked["most"]) if asked["is_required"] else _allowed(start, asked["most"])
    rules += [
        f'body: ("\\n" function "\\n" | function | "[" function "]") {end}',
        "function: " + " | ".join(functions),
    ]
    for rule, tool in zip(functions, asked["tools"], strict=True):
        head = json.dumps(f'{{"name": "{tool["name"]}", "arguments": ')
        rules += [f'{rule}: {head} {rule}_arguments "}}"', f"{rule}_arguments: {json_rule(tool['parameters'])}"]
    return "\n".join(rules)


def _calls(rule: str, start: str, most: int) -> list[str]:
    if most == 1:
        return [f"{rule}: call", f"call: {start} body"]
    return [f'{rule}: call ("\\n" call){{0,{most - 1}}}', f"call: {start} body"]


def _allowed(start: str, most: int) -> list[str]:
    if not start.startswith('"'):
        return [f"start: (TEXT {start} body){{0,{most}}} TEXT", f"TEXT: /{_ANYTHING}/"]
    return [
        f"start: (head body){{0,{most}}} rest",
        f"head[lazy]: /{_ANYTHING}/ {start}",
        "rest: REST",
        f"REST: /{_ANYTHING}/ & ~/{_ANYTHING}{CALL_START}{_ANYTHING}/",
    ]
