"""Structures to matchers, by llguidance: one vocabulary's, each grammar compiled once and bounded in size and work."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bundle.errors import EngineDeadError, MachineError, ParameterError
from bundle.extras import install_line
from bundle.text import Tokenizer
from bundle.token_bytes import TokenBytes
from serving.engine.sampling.constraint import Constraint, Matcher, told
from serving.engine.sampling.endless import grammar_can_end, schema_can_end
from serving.engine.sampling.tool_grammar import tool_grammar
from serving.protocol import Structure

MOST_BYTES = 64 << 10
"""Of a schema, regular expression or grammar. Compiling takes up to tens of microseconds a byte."""
_MOST_KEPT_BYTES = 1 << 20
_MOST_KEPT = 64
"""Structures that passed, as texts: an answer's matcher is made anew, in about a millisecond for most."""
_LIMITS = {
    "initial_lexer_fuel": 250_000,  # five milliseconds of lexer work
    "step_lexer_fuel": 100_000,  # seven milliseconds a step
    "max_lexer_states": 20_000,  # at 1 to 2 kB each, for one answer
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_BLANK = r"\x20"
"""May stand between two words of JSON, once. Where any blanks may, a small model says nothing else until it is cut."""
_ASCII_DIGITS = "d"
"""How llguidance is told that \\d are 0 to 9, and not all digits of all scripts."""
_OWN_OPTIONS = "x-guidance"
_OWN_LINE = "%llguidance"
_TAIL = f'\n{_OWN_LINE} {{"no_forcing": true}}\n'
"""Forced text is not walked ahead of the model: "a{1000000000}" would be, for seconds within one step."""


@dataclass(frozen=True)
class Compiled:
    """A structure ready to be followed.

    Attributes:
        matchers: Of as many answers, each at its beginning. They share nothing: copies of one would share its lexer,
            whose limits are an answer's own.
        lead: May stand before what was asked for, and is no part of it; empty where nothing may.
    """

    matchers: tuple[Matcher, ...]
    lead: str = ""


@dataclass(frozen=True)
class _Passed:
    """A structure that was compiled once, and may be.

    Attributes:
        grammar: As llguidance takes it.
        lead: As `Compiled.lead`.
    """

    grammar: str
    lead: str = ""


class Grammars:
    """Compiles structures for one model's vocabulary; safe to use from several threads.

    Args:
        tokenizer: The model's.
        vocab_size: V of its logits; ids that the tokenizer lacks are never allowed, nor those that only it has: a
            token that stands for an image may have no logit, as mllama's.
        end_ids: Tokens that end an answer; at least one.
        num_threads: For what may follow; as many as sequences run at once, so that none waits for a costly one.
        lead: The blanks with which the model begins its answers, because its template leaves them to it. A structure
            that forbade them would make it say what it never says: they may stand before one that has none itself.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int], num_threads: int, lead: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = tuple(end_ids)
        self._threads = ThreadPoolExecutor(num_threads, "grammar-masks")
        self._gate = threading.Lock()
        self._words: Any = None
        self._lead = lead
        self._passed: OrderedDict[tuple[str, str], _Passed] = OrderedDict()

    def compiled(self, structure: Structure, count: int = 1) -> Compiled:
        """Return a structure at the beginning of so many answers; takes milliseconds, or some seconds.

        Raises:
            ParameterError: The structure is too large, or llguidance cannot express it.
            MachineError: llguidance is not installed.
        """
        key = (structure.kind, structure.text)
        with self._gate:
            passed = self._passed.get(key)
        if passed is None:
            passed = self._judged(structure)
        with self._gate:
            self._passed[key] = passed
            self._passed.move_to_end(key)
            while len(self._passed) > _MOST_KEPT or sum(len(text) for _, text in self._passed) > _MOST_KEPT_BYTES:
                self._passed.popitem(last=False)
        library, param = _library(), structure.param
        return Compiled(tuple(self._matcher(library, passed.grammar, param) for _ in range(count)), passed.lead)

    def constraint(self, matcher: Matcher, param: str) -> Constraint:
        """Return the constraint of an answer that begins; the matcher is its own from here on.

        Raises:
            EngineDeadError: The grammars were closed.
        """
        try:
            return Constraint(matcher, self._end_ids, param, self._threads)
        except RuntimeError as error:  # from an executor that takes nothing more
            raise EngineDeadError("the engine was stopped; send the request again") from error

    def close(self) -> None:
        """Take no more work; what was begun ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judged(self, structure: Structure) -> _Passed:
        """Return a structure's grammar, once it was seen to allow an answer that ends."""
        library, param = _library(), structure.param
        if not self._end_ids:
            raise ParameterError(f"{param}: this model has no token that ends an answer, so none can be held", param)
        if (size := len(structure.text.encode(errors="surrogatepass"))) > MOST_BYTES:
            whole = param if structure.answer is None else f"{param}, with tools,"
            raise ParameterError(f"{whole} holds {size} bytes; at most {MOST_BYTES} are compiled", param)
        grammar = _lark(library, structure, self._special_texts)
        matcher = self._own_matcher(library, grammar, structure)
        if not _can_end(structure):
            raise ParameterError(f"{param} allows no answer that ends: what it asks for needs itself", param)
        if not self._lead or structure.kind == "grammar" or self._may_begin_with_lead(matcher):
            _check_allows(matcher, param)
            return _Passed(grammar)
        _check_allows(self._matcher(library, _led(grammar, self._lead), param), param)
        return _Passed(_led(grammar, self._lead), self._lead)

    def _own_matcher(self, library: Any, grammar: str, structure: Structure) -> Any:
        """Return the matcher of a grammar; where it is of calls and of an answer, the error says which cannot be."""
        try:
            return self._matcher(library, grammar, structure.param)
        except ParameterError as error:
            if (answer := structure.answer) is None:
                raise
            self._matcher(library, _lark(library, answer, self._special_texts), answer.param)
            raise ParameterError(
                f"tools cannot be held to their schemas beside {answer.param}: {error}", "tools"
            ) from error

    def _matcher(self, library: Any, grammar: str, param: str) -> Any:
        limits = library.LLParserLimits(**_LIMITS)
        matcher = library.LLMatcher(self._vocabulary(library, param), grammar + _TAIL, limits=limits, log_level=0)
        if matcher.is_error() or matcher.get_grammar_warnings():
            why = told(matcher) or " ".join(matcher.get_grammar_warnings())
            raise ParameterError(f"{param} cannot be followed: {why}", param)
        return matcher

    def _may_begin_with_lead(self, matcher: Any) -> bool:
        """Return whether a structure says itself that an answer may begin so."""
        return bool(matcher.deep_copy().validate_tokens(self._lead_ids[:1]))

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        return frozenset(token.text for token in self._tokenizer.added_tokens if token.is_special)

    @cached_property
    def _lead_ids(self) -> list[int]:
        """Tokens that are the lead and no more; none where the vocabulary has no such token."""
        of = TokenBytes(self._tokenizer).of
        return [token_id for token_id in range(self._tokenizer.vocab_size) if of(token_id) == self._lead.encode()]

    def _vocabulary(self, library: Any, param: str) -> Any:
        """Return llguidance's form of the vocabulary; made for the first structure, in some hundred milliseconds."""
        with self._gate:
            if self._words is None:
                try:
                    named = max((token.id for token in self._tokenizer.added_tokens), default=-1) + 1
                    num_ids = max(self._vocab_size, named)
                    self._words = library.LLTokenizer(
                        self._tokenizer.text(), n_vocab=num_ids, eos_token=list(self._end_ids)
                    )
                except ValueError as error:
                    raise ParameterError(
                        f"{param}: llguidance cannot use this model's tokenizer, so that no answer can be held to a "
                        f"structure: {error}",
                        param,
                    ) from error
            return self._words


def _check_allows(matcher: Matcher, param: str) -> None:
    """Check that something may come first."""
    first = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_error():
        raise ParameterError(f"{param} allows no answer, or is too complex: {told(matcher)}", param)
    if not first.any() and not matcher.is_accepting():
        raise ParameterError(f"{param} allows no answer", param)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MachineError(
            f"structured output needs the package llguidance; install it with: {install_line('serve')}"
        ) from error
    return llguidance


def _can_end(structure: Structure) -> bool:
    if structure.kind == "json":
        return schema_can_end(json.loads(structure.text))
    if structure.kind == "tools":
        answer = structure.answer
        can_say = answer is None or _can_end(answer)
        return can_say and all(schema_can_end(tool["parameters"]) for tool in json.loads(structure.text)["tools"])
    return structure.kind != "grammar" or grammar_can_end(structure.text)


def _led(grammar: str, lead: str) -> str:
    """Return a grammar behind some blanks, or behind nothing."""
    return f"start: lead? answer\nlead: {json.dumps(lead)}\n" + grammar.replace("start:", "answer:", 1)


def _lark(library: Any, structure: Structure, special_texts: frozenset[str]) -> str:
    """Return a structure as a grammar in llguidance's dialect of Lark.

    Raises:
        ParameterError: It is not what its kind says, or says how llguidance shall work.
    """
    text, param = structure.text, structure.param
    if structure.kind == "grammar":
        return _own_grammar(text, param)
    if structure.kind != "tools":
        return "start: " + _rule(library, structure)
    said = None if structure.answer is None else _rule(library, structure.answer)
    return tool_grammar(text, special_texts, lambda schema: _json_rule(schema, param), said)


def _rule(library: Any, structure: Structure) -> str:
    """Return what stands for an answer of a structure within a grammar."""
    if structure.kind == "grammar":
        return f"%lark {{\n{_own_grammar(structure.text, structure.param)}\n}}"
    if structure.kind == "regex":
        return f"/{library.regex_to_lark(structure.text, _ASCII_DIGITS)}/"
    value = json.loads(structure.text)
    if structure.kind == "choice":
        words = (json.dumps(each, ensure_ascii=False).replace("\x7f", "\\u007f") for each in value)
        return " | ".join(words)
    return _json_rule(value, structure.param)


def _own_grammar(text: str, param: str) -> str:
    """Return a caller's grammar, which may not say how llguidance works."""
    if _OWN_LINE in text:
        raise ParameterError(f"{param}: the line {_OWN_LINE} is the server's own; leave it out", param)
    return text


def _json_rule(schema: Any, param: str) -> str:
    """Return what stands for the values of a JSON schema."""
    if _OWN_OPTIONS in schema:
        raise ParameterError(f"{param}: {_OWN_OPTIONS} is the server's own; leave it out", param)
    options = {"whitespace_flexible": True, "whitespace_pattern": _BLANK, "lenient": False, "coerce_one_of": False}
    return "%json " + json.dumps({**schema, _OWN_OPTIONS: options})
