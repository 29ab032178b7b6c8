"""Texts are cleaned as open_clip's functions of the same names do it (its `tokenizer.py`)."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from tokenizers import normalizers

from export.cleaning import CLEANINGS


def spaced(text: str) -> str:
    return " ".join(text.split())


def canonical(text: str) -> str:
    return spaced(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower())


WAYS: dict[str, Callable[[str], str]] = {
    "whitespace": spaced,
    "lower": lambda text: spaced(text).lower(),
    "canonicalize": canonical,
}


def test_every_way_is_held_to_python() -> None:
    assert WAYS.keys() == CLEANINGS.keys()


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("text", ["a_b  C", " It's\tNAÏVE, \n no? ", "[x] {y} ~ `z` @w", "猫 \u3000 İ", ""])
def test_a_text_is_cleaned_as_python_cleans_it(kind: str, text: str) -> None:
    assert normalizers.Sequence(list(CLEANINGS[kind])).normalize_str(text) == WAYS[kind](text)
