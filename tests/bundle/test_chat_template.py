"""Chat templates render as transformers renders them, and cannot leave the sandbox."""

from __future__ import annotations

from datetime import datetime

import pytest

from bundle.chat_template import ChatTemplate
from bundle.errors import BundleFormatError, PromptError

MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be <brief> & 'kind'."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "größe \n"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

SOURCES = {
    "blocks are trimmed": "{% for m in messages %}\n    {% if true %}\n  {{ m.role }}\n    {% endif %}\n{% endfor %}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "json": "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}"
    "{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}",
    "dict": "{{ dict(a=1).a }}{{ dict([('b', 2)]) | tojson }}",
    "absent variables": "{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}{{ nothing }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}",
    "macro": "{% macro f(x) %}[{{ x | upper }}]{% endmacro %}{{ f(messages[0].role) }}",
    "no escaping": "{{ messages[0].content[0].text }}",
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("generation", [True, False])
def test_template_renders_as_the_reference_does(name: str, generation: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=SOURCES[name], add_generation_prompt=generation, **TOKENS
    )
    assert ChatTemplate(SOURCES[name], TOKENS).render(MESSAGES, add_generation_prompt=generation) == expected[0]


def test_time_is_available() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert abs(int(template.render(MESSAGES, add_generation_prompt=True)) - datetime.now().year) <= 1


def test_template_s_own_refusal_reaches_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(PromptError, match="roles must alternate"):
        template.render(MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ (1).__class__.__name__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(PromptError, match="refuses"):
        ChatTemplate(source, {}).render(MESSAGES, add_generation_prompt=True)


def test_missing_part_of_a_message_is_a_prompt_error() -> None:
    with pytest.raises(PromptError, match="refuses"):
        ChatTemplate("{{ messages[7].content[0].text }}", {}).render(MESSAGES, add_generation_prompt=True)


def test_text_that_is_no_template_is_refused_with_its_line() -> None:
    with pytest.raises(BundleFormatError, match="line 2"):
        ChatTemplate("fine\n{% for %}", {})


# As language models' templates are shaped: they join a content that is one string, print it, or filter it
STRING_SOURCES = {
    "ChatML, default system": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<s>sys</s>\n"
    "{% endif %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}",
    "ChatML, by attributes": "{%- if messages[0].role == 'system' %}{{- '<s>system\n' + messages[0].content }}"
    "{%- else %}{{- '<s>system\nYou help.' }}{%- endif %}{%- for m in messages %}{%- if m.role == 'user' or"
    " (m.role == 'assistant' and not m.tool_calls) %}{{- '<s>' + m.role + '\n' + m.content }}{%- endif %}{%- endfor %}",
    "roles alternate": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "one branch a role": "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|user|>\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'system' %}{{ '<|system|>\n' + m['content'] + eos_token }}{% endif %}\n{% endfor %}",
    "wants a system message": "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    "printed": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "trimmed": "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
    "as JSON": "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{% endfor %}",
    "cut": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "in capitals": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "drops all else": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}",
}
PARTS_SOURCES = {
    "parts": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "either": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}",
    "upper case": "{% for m in messages %}{% for p in m.content %}{{ p.text | upper }}{% endfor %}{% endfor %}",
    "either, no system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}",
    "wants a system message": "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
    "says nothing of contents": "{{ bos_token }}",
}


_EITHER = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text or '[IMG]' }}{% endfor %}"
    "{% endif %}"
)
# Pixtral's, as transformers converts it: the user's parts are read, and joined is what the system says
_SYSTEM_BEFORE = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and told is defined %}{{ told + '\n' }}{% endif %}" + _EITHER + "[/INST]{% else %}"
)
ALIKE = dict.fromkeys(("user", "system", "assistant", "tool"), "string")
MIXED_SOURCES = {
    "system joined, answers of either": (
        _SYSTEM_BEFORE + _EITHER + "</s>{% endif %}{% endfor %}",
        {"system": "string"},
    ),
    "system and answers joined": (
        _SYSTEM_BEFORE + "{{ m.content + '</s>' }}{% endif %}{% endfor %}",
        {"system": "string", "assistant": "string"},
    ),
    "system and answers printed": (
        _SYSTEM_BEFORE.replace("told + '\n'", "told") + "{{ m.content }}{% endif %}{% endfor %}",
        {"system": "string", "assistant": "string"},
    ),
    "wants a system message, which it joins": (
        "{% for m in messages %}{% if loop.first %}{{ m.content + '\n' }}{% elif m.role == 'user' %}"
        "{{ m.content[0].text }}{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}",
        {"system": "string", "assistant": "string"},
    ),
    "users joined, answers in parts": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content[0].text }}{% else %}{{ m.content + ' ' }}"
        "{% endif %}{% endfor %}",
        {"user": "string", "system": "string", "tool": "string"},
    ),
}


@pytest.mark.parametrize("name", MIXED_SOURCES)
def test_a_template_that_reads_each_role_in_its_own_way_gets_it_so(name: str) -> None:
    source, strings = MIXED_SOURCES[name]
    template = ChatTemplate(source, TOKENS)
    assert template.content == dict.fromkeys(ALIKE, "parts") | strings
    messages = [
        {"role": role, "content": said if template.content[role] == "string" else [{"type": "text", "text": said}]}
        for role, said in (("system", "be kind"), ("user", "one"), ("assistant", "two"), ("user", "three"))
    ]
    said = template.render(messages, add_generation_prompt=True)
    assert all(text in said for text in ("be kind", "one", "two", "three"))
    assert "'text'" not in said


@pytest.mark.parametrize("name", STRING_SOURCES)
def test_template_that_reads_a_string_is_known(name: str) -> None:
    assert ChatTemplate(STRING_SOURCES[name], TOKENS).content == ALIKE


@pytest.mark.parametrize("name", PARTS_SOURCES)
def test_template_that_reads_parts_is_known(name: str) -> None:
    assert ChatTemplate(PARTS_SOURCES[name], TOKENS).content == dict.fromkeys(ALIKE, "parts")
