"""A tokenizer that would multiply a text is refused before the library that cannot be stopped sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer as Backend

from bundle.errors import BundleFormatError, ContextLengthError
from bundle.text import Tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
INSERTING = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}


def _write(path: Path, **parts: Any) -> Path:
    backend = Backend(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    path.write_text(json.dumps({**json.loads(backend.to_str()), **parts}))
    return path


def _sequence(*steps: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


REFUSED: dict[str, dict[str, Any]] = {
    "bytes of bytes": {"pre_tokenizer": _sequence(*[BYTE_LEVEL] * 50, kind="pretokenizers")},
    "bytes of bytes, as a normalizer": {"normalizer": _sequence(*[{"type": "ByteLevel"}] * 50, kind="normalizers")},
    "doubling": {"normalizer": _sequence(*[DOUBLING] * 50, kind="normalizers")},
    "doubling, nested": {
        "normalizer": _sequence(_sequence(*[DOUBLING] * 9, kind="normalizers"), *[DOUBLING] * 9, kind="normalizers")
    },
    "inserting": {"normalizer": _sequence(*[INSERTING] * 50, kind="normalizers")},
    "one that inserts much": {"normalizer": {**DOUBLING, "content": "a" * 5000}},
    "doubling an answer": {"decoder": _sequence(*[DOUBLING] * 50, kind="decoders")},
    "many steps": {"normalizer": _sequence(*[{"type": "Lowercase"}] * 100, kind="normalizers")},
    "long words": {
        "model": {
            "type": "WordPiece",
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**9,
            "vocab": {"a": 0},
        }
    },
    "tokens around": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}] * 1000,
            "pair": [],
            "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
        }
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizer_that_multiplies_a_text_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match=r"is not a tokenizer: .*(at most|more than) \d+"):
        Tokenizer.from_file(_write(tmp_path / "tokenizer.json", **REFUSED[name]))


TAKEN: dict[str, dict[str, Any]] = {
    "a byte level": {
        "pre_tokenizer": _sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL, kind="pretokenizers")
    },
    "a Llama's": {
        "normalizer": _sequence(
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            kind="normalizers",
        )
    },
    "a CLIP's": {
        "normalizer": _sequence(
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            {"type": "Lowercase"},
            kind="normalizers",
        )
    },
}


@pytest.mark.parametrize("name", TAKEN)
def test_tokenizers_as_they_are_published_are_taken(name: str, tmp_path: Path) -> None:
    assert Tokenizer.from_file(_write(tmp_path / "tokenizer.json", **TAKEN[name])).encode("a")[-1] == 0


def test_token_of_megabytes_does_not_lift_the_limit_of_a_text() -> None:
    backend = Backend(tokenizers.models.BPE(vocab={"a": 0, "b" * 1_000_000: 1}, merges=[]))
    with pytest.raises(ContextLengthError, match="at most 40960"):
        Tokenizer(backend).check_characters(50_000, 10)
