"""Fields of a document in an answer: marks in the manner of XML, read as JSON (Donut, arXiv 2111.15664)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_START = re.compile(r"<s_([^>]*)>", re.IGNORECASE)
_MARK = re.compile(r"</?s_[^>]*>|<sep/>", re.IGNORECASE)
_BETWEEN = "<sep/>"
_WHOLE = "text_sequence"
"""The field of an answer without fields (transformers, `DonutProcessor.token2json`)."""
_DEEPEST = 64
"""Fields within fields; what is deeper is text. Trained documents have three."""


def read_fields(text: str, values: Collection[str]) -> Any:
    """Return what an answer's marks say, as transformers' `DonutProcessor.token2json` reads them.

    A field that holds fields is an object, or a list of them where `<sep/>` stands between; any other is its text, or a
    list of texts. A mark that nothing closes is dropped.

    Args:
        text: The answer, with its marks.
        values: Tokens of the form `<yes/>` that are values, and are told without their brackets.
    """
    groups, rest, is_listed = _groups(text, values, 0)
    if is_listed:
        return groups
    return groups[0] if groups else {_WHOLE: rest}


def without_marks(text: str) -> str:
    """Return an answer's words, with a space where marks stood."""
    return " ".join(_MARK.sub(" ", text).split())


def _groups(text: str, values: Collection[str], depth: int) -> tuple[list[dict[str, Any]], str, bool]:
    """Return the objects between which `<sep/>` stands, what is left behind the last, and whether there was one."""
    groups: list[dict[str, Any]] = [{}]
    while (mark := _START.search(text)) is not None:
        end = re.compile(re.escape(f"</s_{mark[1]}>"), re.IGNORECASE)
        closing = end.search(text)
        if closing is None:
            text = text.replace(mark[0], "")
            continue
        inner = end.search(text, mark.end())
        if inner is not None:
            _put(groups[-1], mark[1], text[mark.end() : inner.start()].strip(), values, depth)
        text = text[closing.end() :].strip()
        if text.startswith(_BETWEEN):
            text = text.removeprefix(_BETWEEN)
            groups.append({})
    return groups if groups[-1] else groups[:-1], text, len(groups) > 1


def _put(group: dict[str, Any], key: str, content: str, values: Collection[str], depth: int) -> None:
    """Add a field to an object; one that holds fields of which none can be read adds nothing."""
    if "<s_" in content and "</s_" in content and depth < _DEEPEST:
        inner, _, _ = _groups(content, values, depth + 1)
        if inner:
            group[key] = inner[0] if len(inner) == 1 else inner
        return
    leaves = [leaf.strip() for leaf in content.split(_BETWEEN)]
    said = [leaf[1:-2] if leaf in values else leaf for leaf in leaves]
    group[key] = said[0] if len(said) == 1 else said
