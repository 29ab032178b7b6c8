"""A SigLIP's texts are read as its training read them, whichever way its files say so."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bundle.text import Tokenizer
from export.lowercase import with_training_case

TEXT = "A  Cat, (the) 'Big' one's:  Größe!"


def _gemma(normalizer: normalizers.Normalizer | None = None) -> str:
    """Gemma's layout: spaces to U+2581, bytes behind letters."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [chr(code) for code in (*range(33, 127), 0x2581)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    own = normalizers.Replace(" ", "▁")
    backend.normalizer = own if normalizer is None else normalizers.Sequence([normalizer, own])
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return str(backend.to_str())


def _read(text: str, settings: dict[str, Any]) -> tuple[str, str | None]:
    changed, note = with_training_case(text, settings)
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(changed))
    return tokenizer.decode(tokenizer.encode(TEXT)), note


@pytest.mark.parametrize(
    "settings",
    [{"tokenizer_class": "GemmaTokenizer", "do_lower_case": True}, {"tokenizer_class": "Siglip2Tokenizer"}],
)
def test_text_is_lower_cased_where_training_did_that_and_export_says_so(settings: dict[str, Any]) -> None:
    found, note = _read(_gemma(), settings)
    assert found == TEXT.lower()
    assert note is not None
    assert "lower-cased" in note


def test_siglip_s_own_tokenizer_also_takes_punctuation_out() -> None:
    found, note = _read(_gemma(), {"tokenizer_class": "SiglipTokenizer"})
    wanted = TEXT.lower().translate(str.maketrans("", "", string.punctuation))  # its canonicalize_text
    assert found == re.sub(r"\s+", " ", wanted).strip()
    assert note is not None
    assert "without punctuation" in note


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GemmaTokenizer"},
        {"tokenizer_class": "Siglip2Tokenizer", "do_lower_case": False},
        {},
    ],
)
def test_text_keeps_its_case_where_nothing_says_otherwise(settings: dict[str, Any]) -> None:
    assert with_training_case(_gemma(), settings) == (_gemma(), None)


def test_tokenizer_that_lower_cases_by_itself_stays_as_it_is() -> None:
    own = _gemma(normalizers.Lowercase())
    assert with_training_case(own, {"tokenizer_class": "Siglip2Tokenizer", "do_lower_case": True}) == (own, None)


def test_changed_tokenizer_is_a_whole_one() -> None:
    changed, _ = with_training_case(_gemma(), {"do_lower_case": True})
    before, after = json.loads(_gemma()), json.loads(changed)
    assert {**before, "normalizer": None} == {**after, "normalizer": None}
