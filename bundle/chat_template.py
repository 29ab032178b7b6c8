"""A checkpoint's chat template, rendered as transformers does, in Jinja's sandbox: templates are strangers' code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bundle.errors import BundleFormatError, PromptError

CHAT_TEMPLATE = "chat_template.jinja"
PROBED_ROLES = (("user",), ("system", "user"), ("user", "assistant", "user"))
"""Conversations that a template is tried on: some want a system message, or an answer, before they render at all."""
_PROBE = "20480 4096"
"""No letters: a template may change their case."""
_PRINTED_PARTS = re.compile(r"""['"]type['"]: ?['"]text['"]""", re.IGNORECASE)
"""A part that was printed as Python or JSON."""


class ChatTemplate:
    """Messages to the text of a prompt; image placeholders as the template writes them.

    Args:
        source: The Jinja text.
        template_tokens: Special tokens by name, variables of the template.

    Attributes:
        content: What the template reads as a message's content: a list of parts, or one string, as the templates of
            language models do. Found as vLLM finds it (its "openai" and "string"), but by trying, not by reading the
            source.

    Raises:
        BundleFormatError: `source` is not a template.
    """

    def __init__(self, source: str, template_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BundleFormatError(f"chat_template.jinja, line {error.lineno}: {error.message}") from error
        self._template_tokens = dict(template_tokens)
        self.content: Literal["parts", "string"] = "parts" if self._reads_parts() else "string"

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return the prompt's text.

        Args:
            messages: `{"role", "content"}`; content is a list of `{"type": "image"}` and `{"type": "text", "text"}`
                or one string, as `self.content` says.
            add_generation_prompt: End with what opens the assistant's answer.

        Raises:
            PromptError: The template refuses the conversation; its own reason is in the message.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._template_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise PromptError(f"the model's chat template refuses these messages: {error}", "messages") from error

    def _reads_parts(self) -> bool:
        """Return whether a text among parts comes out as text; also where no probe tells, since most read parts."""
        of_parts = list(self._probed([{"type": "text", "text": _PROBE}]))
        if any(_PROBE in text and not _PRINTED_PARTS.search(text) for text in of_parts):
            return True
        return not any(_PROBE in text for text in self._probed(_PROBE))

    def _probed(self, content: Any) -> Iterator[str]:
        """Yield what conversations of this content give, without those that the template refuses."""
        for roles in PROBED_ROLES:
            try:
                yield self.render([{"role": role, "content": content} for role in roles], add_generation_prompt=True)
            except PromptError:
                continue


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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
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
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """Return a dict, without handing the class itself to the template."""
    return dict(*args, **kwargs)
