"""A checkpoint's chat template, rendered as transformers does, in a bounded sandbox: templates are strangers' code."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols

from bundle.errors import BundleFormatError, OutOfMemoryError, PromptError
from bundle.template_budget import MOST_STEPS, TemplateBudgetError, spending
from bundle.template_sandbox import MOST_SOURCE_CHARACTERS, BoundedEnvironment
from bundle.tools import CALL_START, Tool, ToolCall, call_value, tool_value

CHAT_TEMPLATE = "chat_template.jinja"
INPUT_TEMPLATE = "input_template.jinja"
"""How inputs are embedded by a model that answers as well, where that is not as its chats are."""
Content = Literal["parts", "string"]
_CONTENTS: tuple[Content, ...] = ("parts", "string")
PROBED_ROLES = (("user",), ("system", "user"), ("user", "assistant", "user"))
"""Conversations that a template is tried on: some want a system message, or an answer, before they render at all."""
_PROBES = {"user": "20480 4096", "system": "30481 5197", "assistant": "40482 6298", "tool": "50483 7399"}
"""What each role says in these. No letters: a template may change their case."""
_TELLING: dict[str, Sequence[tuple[str, ...]]] = {
    "user": PROBED_ROLES,
    "system": (("system", "user"),),
    "assistant": (("user", "assistant", "user"), ("system", "user", "assistant", "user")),
}
"""Conversations that tell what a role's content is; what a role before it reads is known by then."""
_CALL_IN_JSON = re.compile(rf"{re.escape(CALL_START)}\s*\{{")
_PRINTED = r"""['"]text['"]: ?['"]"""
"""Before a text of a part that was printed as Python or JSON."""
_PROBE_TOOL = Tool("n31", "d37", '{"type": "object", "properties": {}}')
_PROBE_CALL = ToolCall("7", "n41", '{"a": 43}')
_PROBE_STEPS = MOST_STEPS // 10
"""Of a conversation of three messages at most."""
_MOST_REASON_CHARACTERS = 500
_MOST_DATE_CHARACTERS = 1000
_REFUSED = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What templates let out of themselves."""


class ChatTemplate:
    """Messages to the text of a prompt; image placeholders as the template writes them.

    Args:
        source: The Jinja text.
        template_tokens: Special tokens by name, variables of the template.

    Attributes:
        content: By role, what the template reads as a message's content: a list of parts, or one string, as the
            templates of language models do. Found as vLLM finds it (its "openai" and "string"), but by trying, not by
            reading the source, and for each role: Pixtral's reads the user's parts and joins what the system says.
        has_tools: It tells the model of functions, and of calls and results, in the form of `bundle.tools`.

    Raises:
        BundleFormatError: `source` is not a template, or does more than any prompt needs.
    """

    def __init__(self, source: str, template_tokens: Mapping[str, str]) -> None:
        self._template = _compiled(source)
        self._template_tokens = dict(template_tokens)
        self.content: dict[str, Content] = {}
        for role, conversations in _TELLING.items():
            self.content[role] = self._content_of(role, conversations)
        of_results = self._content_of_results()
        self.has_tools = of_results is not None
        self.content["tool"] = of_results or self.content["user"]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the prompt's text.

        Args:
            messages: `{"role", "content"}`; content is a list of `{"type": "image"}` and `{"type": "text", "text"}`
                or one string, as `self.content` says of its role. Where `self.has_tools`, an assistant's may have
                `tool_calls`, and the role may be "tool".
            add_generation_prompt: End with what opens the assistant's answer.
            tools: Functions as `bundle.tools.tool_value` writes them.

        Raises:
            PromptError: The template refuses the conversation; its own reason is in the message.
        """
        try:
            return self._rendered(messages, add_generation_prompt, MOST_STEPS, tools)
        except MemoryError as error:
            raise OutOfMemoryError("the prompt was not made: memory ran out. Try again later.") from error
        except _REFUSED as error:
            raise PromptError(
                f"the model's chat template refuses these messages: {_reason(error)}", "messages"
            ) from error

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        steps: int,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        with spending(steps):
            return self._template.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._template_tokens,
            )

    def _content_of(self, role: str, conversations: Sequence[tuple[str, ...]]) -> Content:
        """Return as what a role's text comes out as text; as the user's, or as parts, where nothing tells."""
        for content in _CONTENTS:
            if any(_says(role, text) for text in self._probed(role, content, conversations)):
                return content
        return self.content.get("user", "parts")

    def _probed(self, role: str, content: Content, conversations: Sequence[tuple[str, ...]]) -> Iterator[str]:
        """Yield what conversations give in which a role has this content, without those that the template refuses."""
        for roles in conversations:
            unknown = sorted({*roles} - {*self.content, role})
            for others in itertools.product(_CONTENTS, repeat=len(unknown)):
                contents = {**self.content, **dict(zip(unknown, others, strict=True)), role: content}
                try:
                    yield self._rendered([_probe(each, contents[each]) for each in roles], True, _PROBE_STEPS)
                except (TemplateBudgetError, RecursionError, MemoryError) as error:
                    raise BundleFormatError(
                        f"{CHAT_TEMPLATE} does more for {len(roles)} short messages than any prompt needs: "
                        f"{_reason(error)}"
                    ) from error
                except _REFUSED:
                    continue

    def _content_of_results(self) -> Content | None:
        """Return as what a result comes out, with the function and a call: the mark of calls, and JSON behind it.

        None where they do not: Qwen3.5's template writes the same mark with functions and parameters in tags behind it.
        """
        asked = _probe("user", self.content["user"])
        called = {**_probe("assistant", self.content["assistant"], ""), "tool_calls": [call_value(_PROBE_CALL, str)]}
        for content in _CONTENTS:
            try:
                tools = [tool_value(_PROBE_TOOL, str)]
                text = self._rendered([asked, called, _probe("tool", content)], True, _PROBE_STEPS, tools)
            except (*_REFUSED, TemplateBudgetError, MemoryError):
                continue
            is_told = all(each in text for each in ("n31", "d37", "n41")) and _says("tool", text)
            if is_told and _CALL_IN_JSON.search(text):
                return content
        return None


def _probe(role: str, content: Content, text: str | None = None) -> dict[str, Any]:
    """Return a message of a role, by default with its own text."""
    said = _PROBES[role] if text is None else text
    return {"role": role, "content": said if content == "string" else [{"type": "text", "text": said}]}


def _says(role: str, text: str) -> bool:
    """Return whether a conversation shows the role's text, and not as Python or JSON prints a part."""
    probe = re.escape(_PROBES[role])
    return bool(re.search(probe, text)) and not re.search(_PRINTED + probe, text, re.IGNORECASE)


def _compiled(source: str) -> jinja2.Template:
    if len(source) > MOST_SOURCE_CHARACTERS:
        raise BundleFormatError(
            f"{CHAT_TEMPLATE} holds {len(source)} characters; at most {MOST_SOURCE_CHARACTERS} are read"
        )
    try:
        with spending(MOST_STEPS):
            return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise BundleFormatError(f"{CHAT_TEMPLATE}, line {error.lineno}: {_reason(error)}") from error
    except (*_REFUSED, SyntaxError, MemoryError) as error:
        raise BundleFormatError(f"{CHAT_TEMPLATE} cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return what an error says in one short line without control characters: part of it may be the template's."""
    told = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter for letter in told if letter.isprintable())[:_MOST_REASON_CHARACTERS]


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks training targets: its body is rendered as it stands."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> jinja2.Environment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _dict
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > _MOST_DATE_CHARACTERS:
        raise TemplateBudgetError(f"it writes a date by a form of {len(form)} characters")
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """Return a dict, without handing the class itself to the template."""
    return dict(*args, **kwargs)
