# ruff: noqa: E501 - a template is one line
"""A template is a stranger's program: whatever it does, it ends soon and small, when it is read and when it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import process_time
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bundle.chat_template import ChatTemplate
from bundle.errors import BundleFormatError, PromptError

PLAIN = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
TWO = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in ("one", "two")]
FOUR = [*TWO, *TWO]

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in a macro": (
        "{% macro f() %}{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}{% endmacro %}{{ f() }}"
    ),
    "filtered loop": "{% for a in range(99999) if a in range(99999)|list %}{% endfor %}" * 9,
    "loops of large bodies": "{% for a in range(99999) %}{% for b in range(99) %}"
    + "{{ a }}" * 9000
    + "{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "maps": "{% for a in range(99999) %}{% set b = range(99999)|map('string')|list %}{% endfor %}",
    "lazy maps": "{% for a in range(99999)|map('string')|map('list')|map('join') %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "power": "{{ 7 ** 100000000 }}",
    "power of powers": "{{ 7 ** (7 ** (7 ** (7 ** 7))) }}",
    "squares": "{% set n = namespace(x=9) %}{% for a in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "precision": "{{ 1.5|round(1000000000, 'ceil') }}",
    "product": "{{ 'x' * 4000000000 }}",
    "product of a list": "{{ ([1] * 4000000000)|length }}",
    "product in a branch never taken": "{% if false %}{{ 'x' * 40000000000 }}{% endif %}{{ 'x'|center(3000000000) }}",
    "center": "{{ 'x'.center(3000000000) }}",
    "ljust": "{{ 'x'.ljust(3000000000) }}",
    "zfill": "{{ '1'.zfill(3000000000) }}",
    "center filter": "{{ 'x'|center(3000000000) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "indent": "{{ ('a\n' * 99999)|indent(99999) }}",
    "format": "{{ '{:>4000000000}'.format(1) }}",
    "nested format": "{{ '{:>{}}'.format(1, 4000000000) }}",
    "format by a mapping": "{{ '{a:>4000000000}'.format_map({'a': 1}) }}",
    "many formats": "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "percent": "{{ '%4000000000d' % 1 }}",
    "starred percent": "{{ '%*d' % (4000000000, 1) }}",
    "percent filter": "{{ '%4000000000d'|format(1) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replace nothing": "{{ ('x' * 99999)|replace('', 'y' * 99999) }}",
    "join": "{{ ('x' * 99999).join(['a'] * 99999) }}",
    "join filter": "{{ (['a'] * 99999)|join('x' * 99999) }}",
    "join of one text": "{{ (['x' * 99999] * 99999)|join }}",
    "translate": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by tildes": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a set block": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set b %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}{% endfor %}",
    "shared lists": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "shared mappings": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x|tojson }}",
    "shared batches": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = (n.x + n.x)|batch(2)|list %}{% endfor %}{{ n.x }}",
    "compared lists": (
        "{% set n = namespace(x=[1], y=[1]) %}{% for a in range(60) %}"
        "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"
    ),
    "batch": "{{ [1]|batch(1000000000, 'x')|list|length }}",
    "slice": "{{ [1]|slice(1000000000)|list|length }}",
    "sum of lists": "{{ (([[1] * 999]) * 9999)|sum(start=[])|length }}",
    "json": "{{ [[[1]]]|tojson(indent=1000000000) }}",
    "slices": "{% set x = 'x' * 999999 %}{% for a in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "date": "{{ strftime_now('%Y' * 99999) }}",
    "long text in a loop": "{% for a in range(99999) %}" + "lorem ipsum " * 5000 + "{% endfor %}",
    "comparisons of long texts": "{% set x = 'x' * 999999 %}{% for a in range(99999) %}{% if 'y' in x %}{% endif %}{% endfor %}"
    * 5,
}
LARGE = (
    "doubling",
    "doubling a set block",
    "lazy maps",
    "shared lists",
    "long text in a loop",
    "loops in a macro",
    "slices",
)
"""Those that hold most while they go on."""
UNREADABLE = {
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "few brackets": "{{ " + "(" * 150 + "1" + ")" * 150 + " }}" + "{% for a in b %}" * 30,
    "lists": "{{ " + "[" * 300 + "]" * 300 + " }}",
    "ifs": "{% if a %}" * 500 + "{% endif %}" * 500,
    "sums": "{{ 1" + "+1" * 20000 + " }}",
    "filters": "{{ 1" + "|abs" * 20000 + " }}",
    "unclosed": "{% for a in",
    "unknown filter": "{{ 1|nofilter }}",
    "html": "{{ 'a'|urlize }}",
    "too long": "x" * ((1 << 17) + 1),
}
MOST_CPU_S = 10.0


@pytest.mark.parametrize("name", ENDLESS)
def test_template_that_never_ends_is_refused_when_it_is_read(name: str) -> None:
    start = process_time()
    with pytest.raises(BundleFormatError, match=r"does more for \d short messages than any prompt needs: ") as told:
        ChatTemplate(ENDLESS[name] + PLAIN, {})
    assert process_time() - start < MOST_CPU_S
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("name", ENDLESS)
def test_template_that_never_ends_for_some_messages_is_refused_for_those_alone(name: str) -> None:
    template = ChatTemplate("{% if messages|length == 4 %}" + ENDLESS[name] + "{% endif %}" + PLAIN, {})
    start = process_time()
    with pytest.raises(PromptError, match="chat template refuses these messages"):
        template.render(FOUR, add_generation_prompt=True)
    assert process_time() - start < MOST_CPU_S
    assert template.render(TWO, add_generation_prompt=True) == "onetwo"


@pytest.mark.parametrize("name", UNREADABLE)
def test_template_that_cannot_be_read_is_refused_in_one_line(name: str) -> None:
    start = process_time()
    with pytest.raises(BundleFormatError, match=r"chat_template\.jinja") as told:
        ChatTemplate(UNREADABLE[name], {})
    assert process_time() - start < MOST_CPU_S
    assert "\n" not in str(told.value)


_IN_LITTLE_MEMORY = """
import re, resource
from test_template_sandbox import ENDLESS, FOUR, LARGE, PLAIN, UNREADABLE
from bundle.chat_template import ChatTemplate
from bundle.errors import BundleFormatError, OutOfMemoryError, PromptError
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), resource.RLIM_INFINITY))
for name, source in {**ENDLESS, **UNREADABLE}.items():
    try:
        ChatTemplate(source + PLAIN, {})
    except BundleFormatError as error:
        if "MemoryError" in str(error) and name not in ("brackets", "few brackets"):  # CPython's parser says so, too
            print(name, error)
for name in LARGE:
    source = ENDLESS[name]
    template = ChatTemplate("{% if messages|length == 4 %}" + source + "{% endif %}" + PLAIN, {})
    try:
        template.render(FOUR, add_generation_prompt=True)
    except PromptError:
        continue
    except OutOfMemoryError as error:
        print(name, error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the address space of Linux is limited here")
def test_no_template_takes_half_a_gigabyte() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _IN_LITTLE_MEMORY],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert told.stdout == ""


HARMLESS = {
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{% endfor %}",
    "loop over a mapping": "{% for k, v in messages[0].items() %}{{ k }}{% endfor %}{% for k in messages[0] %}{{ k }}{% endfor %}",
    "loop over nothing": "{% for a in nothing %}{% else %}none{% endfor %}{% for c in 'abc' %}{{ c }}{% endfor %}",
    "loop with a condition": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "recursive loop": "{% for a in [[1, [2]], [3]] recursive %}{% if a is iterable %}{{ loop(a) }}{% else %}{{ a }}{% endif %}{% endfor %}",
    "arithmetic": "{{ 7 ** 3 - 2 * 3 // 2 + 7 % 4 / 2 }}{{ 'ab' * 3 + 'c' }}{{ [1] + [2] * 2 }}{{ -1 }}{{ 'a' ~ 1 ~ [2] }}",
    "slices": "{{ messages[1:] }}{{ 'abcdef'[1:4] }}{{ messages[::-1]|length }}{{ messages[-1].role }}",
    "texts": "{{ ' a\tb '.strip().upper().replace('A', 'bb').center(20).split() }}{{ 'a,b'.split(',')[0] }}{{ 'x'.startswith('x') }}",
    "formats": "{{ '{:>5}|{a}'.format('x', a=1) }}{{ '%-5s|%03d' % ('a', 7) }}{{ '%s'|format('z') }}{{ '{a}'.format_map({'a': 2}) }}",
    "filters": (
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='role')|join(', ') }}{{ [3, 1, 2]|sort|list }}"
        "{{ 'a b'|title|trim|indent(4, true) }}{{ messages|map('tojson')|list|length }}{{ [1, 2, 3]|batch(2)|list }}"
        "{{ {'b': 1, 'a': 2}|dictsort }}{{ messages|groupby('role')|length }}{{ x|default('d') }}{{ [1, 2]|sum }}{{ 1.26|round(1) }}"
        "{{ [1, [2, 3]]|tojson(indent=2) }}{{ 'abc'|replace('b', 'xx') }}{{ messages|first }}{{ messages|last }}{{ 'aXb'|lower|length }}"
    ),
    "macros": (
        "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}"
        "{{ f(1) }}{% call f(3) %}x{% endcall %}"
    ),
    "namespaces": "{% set n = namespace(x='') %}{% for a in range(5) %}{% set n.x = n.x ~ a %}{% endfor %}{{ n.x }}{% set b %}q{% endset %}{{ b }}",
    "comparisons": "{{ 1 < 2 <= 3 }}{{ 'a' in 'abc' }}{{ 'a' not in ['b'] }}{{ messages == messages }}{{ x is defined }}{{ none is none }}",
    "blocks": "{% block a %}x{% endblock %}{{ self.a() }}{% filter upper %}abc{% endfilter %}{% with y = 3 %}{{ y }}{% endwith %}",
    "tuples": "{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{% for c, (d, e) in [(1, (2, 3))] %}{{ c }}{{ d }}{{ e }}{% endfor %}",
    "other values": "{{ none }}{{ true }}{{ 1.5 }}{{ nothing }}{{ [none, {'a': (1,)}] }}{{ dict(a=1) }}{{ cycler('a', 'b').next() }}",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_bounded_template_says_what_jinja_s_sandbox_says(name: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = _json
    plain.globals["dict"] = dict
    expected = plain.from_string(HARMLESS[name]).render(messages=FOUR)
    assert ChatTemplate(HARMLESS[name], {}).render(FOUR, add_generation_prompt=True) == expected


def _json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == "
    "'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' "
    "%}{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def test_thousands_of_messages_are_rendered() -> None:
    rendered = ChatTemplate(SMOLVLM, {}).render(TWO * 2500, add_generation_prompt=True)
    assert rendered.count("one") == 2500
    long = [{"role": "user", "content": [{"type": "text", "text": "a word " * 100_000}]}]
    assert len(ChatTemplate(SMOLVLM, {}).render(long, add_generation_prompt=True)) > 700_000


def test_errors_of_templates_tell_no_control_characters() -> None:
    template = ChatTemplate(
        "{% if messages|length == 4 %}{{ raise_exception('a\\n\\x1b[31mb' * 999) }}{% endif %}" + PLAIN, {}
    )
    with pytest.raises(PromptError) as told:
        template.render(FOUR, add_generation_prompt=True)
    assert "\x1b" not in told.value.message
    assert len(told.value.message) < 600


def test_jinja_is_the_version_whose_compiled_code_is_charged() -> None:
    """The charging overrides Jinja's own hooks and nodes: look through its compiler before this is raised."""
    assert jinja2.__version__.startswith("3.1.")
