"""Vocabularies and merges without `tokenizer.json` are the tokenizers that transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.vocabulary import Vocabulary

MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ c", "Ġc a", "1 2", "Ġ Ġ", "Ċ Ċ", "e Ģ", "' s"]
TEXTS = [
    "the cat's in the  hat",
    "It'S 1234, 12 of the\n\nthen\r\n  x",
    "<|im_start|>user\nthe<|im_end|>\n",
    "naïve café e\u0301 — “quote” 你好",
    " the",
    "",
]


def save(folder: Path, **settings: Any) -> Path:
    """Write a vocabulary of bytes and a few merges, with two tokens stated beside them."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *("".join(merge.split(" ")) for merge in MERGES), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: at for at, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    special = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    stated = {
        str(len(pieces) + at): {"content": text, **special} for at, text in enumerate(("<|im_start|>", "<|im_end|>"))
    }
    stated[str(len(pieces) - 1)] = {"content": "<|endoftext|>", **special}
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "added_tokens_decoder": stated}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **settings}))
    return folder


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer"])
def test_texts_become_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    folder = save(tmp_path / "older", tokenizer_class=name)
    theirs = getattr(transformers, name.removesuffix("Fast")).from_pretrained(folder)
    vocabulary = Vocabulary.read(folder, lower_cases=False)
    ours = Tokenizer.from_str(vocabulary.text)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert vocabulary.ids["<|im_start|>"] == theirs.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokenizer_class": "RobertaTokenizer"}, "tokenizer_class 'RobertaTokenizer' is none of Qwen2Tokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "add_prefix_space is true"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}, "add_bos_token is true"),
    ],
)
def test_other_tokenizers_are_refused_by_name(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        Vocabulary.read(save(tmp_path / "older", **settings), lower_cases=False)


def test_damaged_merges_are_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "older", tokenizer_class="Qwen2Tokenizer")
    (folder / "merges.txt").write_text("#version: 0.2\nnot in the vocabulary\n")
    with pytest.raises(CheckpointError, match=r"no vocabulary with merges"):
        Vocabulary.read(folder, lower_cases=False)
