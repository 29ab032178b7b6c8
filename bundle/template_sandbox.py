"""Jinja's sandbox with a price on everything: a template is a stranger's program, run on a server's threads.

Jinja's own sandbox keeps a template from the interpreter's insides. Here every loop, call, operator and filter is
charged to the budget of the rendering (`bundle.template_budget`), and what would make a large value is asked for its
size first. Nothing is computed while a template is compiled, where Jinja would fold `'x' * 4000000000` in a branch that
is never taken. Filters that make HTML are left out, and `lipsum`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import BuiltinMethodType, CodeType
from typing import Any

import jinja2
import jinja2.nodes as nodes
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from bundle.template_budget import TemplateBudgetError, current_budget

MOST_SOURCE_CHARACTERS = 1 << 17
"""Of a template; published ones have up to 20,000."""
_LARGEST_ARGUMENT = 100_000
"""A width, a count, a precision."""
_MOST_BITS = 10_000
"""Of an integer."""
_NODES_A_STEP = 8
_DEEPEST_INDENT = 16
_LEFT_OUT = ("urlize", "xmlattr", "striptags")
_SLICED, _JOINED, _WEIGHED, _TICKING, _MADE = "_sliced", "_joined", "_weighed", "_ticking", "_made"
"""Filters that the charging puts in; a template that names one is charged, no more."""
_NUMBERS = re.compile(r"\d+")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Templates that end, in bounded time and memory; for one template each.

    Rendering and compiling want a budget (`bundle.template_budget.spending`).
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_shown, **options)
        self._macro_steps = 1
        del self.globals["lipsum"]
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters.update({name: _bounded(name, each) for name, each in self.filters.items()})
        self.filters.update({_SLICED: _made, _MADE: _made, _JOINED: _joined, _WEIGHED: _weighed, _TICKING: _ticking})

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Give templates one more filter, which is charged like all others."""
        self.filters[name] = _bounded(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._macro_steps = _steps_of(tree)
        charged: nodes.Template = _Charging().visit(tree)
        charged.set_environment(self)
        return charged

    def _compile(self, source: str, filename: str) -> CodeType:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # Python's, on expressions of a stranger: `1[0]`
            return super()._compile(source, filename)

    def concat(self, pieces: Iterable[str]) -> str:
        """Return the pieces as one text: of the whole template, of a macro, of a block that is set."""
        budget, found, num_characters = current_budget(), [], 0
        for piece in pieces:
            num_characters += len(piece)
            budget.check_characters(len(piece))
            found.append(piece)
        budget.check_characters(num_characters)
        return "".join(found)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Return what a binary operator gives, its size judged first."""
        _check_operands(operator, left, right)
        return current_budget().made(super().call_binop(context, operator, left, right))

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Return what a call gives, its size judged first where that can be told."""
        budget = current_budget()
        budget.spend(__self._macro_steps if isinstance(__obj, (Macro, BlockReference)) else 1)
        if isinstance(__obj, LoopContext) and args:
            args = (budget.ticking(args[0], __self._macro_steps), *args[1:])
        elif isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str):
            args = _checked_text_call(__obj.__name__, __obj.__self__, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a text's `format`, sandboxed and bounded; None where the value is something else."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            if _NESTED_FIELD.search(value.__self__):
                raise TemplateBudgetError("it takes a field's width from another one")
            _check_format(value.__self__, "{", [*args, *kwargs.values()])
            return formatted(*args, **kwargs)

        return bounded


class _Charging(NodeTransformer):
    """Puts a price on what Jinja compiles to plain Python; its methods are named by Jinja, after its nodes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        steps = 1 + sum(_steps_of(each) for each in node.body)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _TICKING, nodes.Const(steps))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _SLICED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        sides: list[Any] = [node, *node.ops]
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = _filtered(side.expr, _WEIGHED)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, _MADE)


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _steps_of(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // _NODES_A_STEP


def _shown(value: Any) -> Any:
    """Return what an expression gives as it is written out, its size judged first."""
    if not isinstance(value, str):
        current_budget().check_characters(current_budget().characters_of(value))
    return value


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that charges for what it takes and makes; it is never run while a template is compiled."""
    wants = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    def bounded(context: jinja2.runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.spend(1)
        if isinstance(value, Iterator):
            value = list(budget.ticking(value, 1))
        args = tuple(list(budget.ticking(each, 1)) if isinstance(each, Iterator) else each for each in args)
        _check_filter(name, value, args, kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        given = function(*([first[wants.name]] if wants else []), value, *args, **kwargs)
        return budget.made(list(budget.ticking(given, 1)) if isinstance(given, Iterator) else given)

    return bounded


@jinja2.pass_context
def _ticking(context: jinja2.runtime.Context, values: Any, steps: int) -> Any:
    """Return values to loop over, each for so many steps."""
    num_left = len(values) if hasattr(values, "__len__") else None
    ticking = current_budget().ticking(values, steps)
    return ticking if num_left is None else _Counted(ticking, num_left)


class _Counted:
    """An iterator that knows how many values it began with, as `loop.length` asks."""

    def __init__(self, values: Iterator[Any], length: int) -> None:
        self._values = values
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        return self._values

    def __len__(self) -> int:
        return self._length


@jinja2.pass_context
def _made(context: jinja2.runtime.Context, value: Any) -> Any:
    return current_budget().made(value)


@jinja2.pass_context
def _weighed(context: jinja2.runtime.Context, value: Any) -> Any:
    """Return a value that is about to be compared; that goes through all of it."""
    if isinstance(value, str):
        current_budget().spend(len(value) // _LARGEST_ARGUMENT)
    elif isinstance(value, (list, tuple, dict)):
        current_budget().characters_of(value)
    return value


@jinja2.pass_context
def _joined(context: jinja2.runtime.Context, values: Sequence[Any]) -> str:
    current_budget().check_characters(current_budget().characters_of(values))
    return "".join(map(str, values))


def _check_arguments(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
            raise TemplateBudgetError(f"it asks for {_short(value)} of something; at most {_LARGEST_ARGUMENT}")


def _short(value: int) -> str:
    return str(value) if value.bit_length() < 64 else f"a number of {value.bit_length()} bits"


def _check_filter(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Charge a filter for what it goes through, and refuse one that would make a large value."""
    budget = current_budget()
    given = [*args, *kwargs.values()]
    _check_arguments(given)
    num_characters = budget.characters_of(value)
    budget.spend(num_characters // _LARGEST_ARGUMENT)
    text_given = max((len(each) for each in given if isinstance(each, str)), default=0)
    if name == "join":
        budget.check_characters(num_characters + text_given * len(value) if hasattr(value, "__len__") else 0)
    elif name == "replace":
        _check_replace(str(value), *(str(each) for each in given[:2]))
    elif name == "format":
        _check_format(str(value), "%", given)
    elif name == "indent":
        width = max([text_given, *(each for each in given if isinstance(each, int)), 4])
        budget.check_characters(num_characters + (1 + str(value).count("\n")) * width)
    elif name == "tojson" and any(isinstance(each, int) and each > _DEEPEST_INDENT for each in given):
        raise TemplateBudgetError(f"it indents by more than {_DEEPEST_INDENT}")
    elif name == "sum" and any(not isinstance(each, (int, float, str)) for each in given):
        raise TemplateBudgetError("it sums what are no numbers")


def _checked_text_call(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a text method's arguments once the text that it would make is found to be small."""
    budget = current_budget()
    args = tuple(list(budget.ticking(each, 1)) if isinstance(each, Iterator) else each for each in args)
    _check_arguments([*args, *kwargs.values()])
    budget.spend(len(text) // _LARGEST_ARGUMENT)
    if name == "replace" and len(args) >= 2:
        _check_replace(text, str(args[0]), str(args[1]))
    elif name == "join" and args and hasattr(args[0], "__len__"):
        budget.check_characters(budget.characters_of(args[0]) + len(text) * len(args[0]))
    elif name == "expandtabs":
        size = max([8, *(each for each in [*args, *kwargs.values()] if isinstance(each, int))])
        budget.check_characters(len(text) + text.count("\t") * size)
    elif name == "translate":
        raise TemplateBudgetError("it calls translate, which is left out")
    return args


def _check_replace(text: str, old: str = " ", new: str = "") -> None:
    places = text.count(old) if old else len(text) + 1
    current_budget().check_characters(len(text) + places * max(len(new) - len(old), 0))


def _check_format(text: str, opener: str, args: Sequence[Any]) -> None:
    """Judge what a format makes by its fields, the numbers in it, which may be widths, and what is put in."""
    widths = sum(int(number[:9]) for number in _NUMBERS.findall(text))
    put_in = current_budget().characters_of(list(args))
    if opener == "%" and "*" in text:
        _check_arguments(args)
        widths += sum(abs(each) for each in args if isinstance(each, int))
    current_budget().check_characters(len(text) + widths + text.count(opener) * put_in)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        _check_product(left, right)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    elif operator == "%" and isinstance(left, str):
        _check_format(left, "%", right if isinstance(right, tuple) else [right])
    elif operator == "+" and isinstance(left, (str, list, tuple)) and type(left) is type(right):
        check = current_budget().check_characters if isinstance(left, str) else current_budget().check_elements
        check(len(left) + len(right))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for many, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(many, str):
            current_budget().check_characters(len(many) * max(count, 0))
        elif isinstance(count, int) and isinstance(many, (list, tuple)):
            current_budget().check_elements(len(many) * max(count, 0))


def _check_bits(num_bits: int) -> None:
    if num_bits > _MOST_BITS:
        raise TemplateBudgetError(f"it makes an integer of {num_bits} bits; at most {_MOST_BITS}")
