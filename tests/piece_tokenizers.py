"""Tiny tokenizers as sentencepiece's become in `tokenizer.json`: a blank before every text, bytes for what is rare."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints import write_json
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
LETTERS = [letter for letter in string.printable if letter not in " \t\n\r\x0b\x0c"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def save_pieces(folder: Path, model: models.Model, begins_with: tuple[str, int] | None, **settings: Any) -> None:
    """Write a tokenizer whose first pieces are those of nothing known, a beginning and an end."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in (UNKNOWN, BOS, EOS)])
    if begins_with is not None:
        first = begins_with[0]
        backend.post_processor = processors.TemplateProcessing(f"{first} $A", special_tokens=[begins_with])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **settings})


def merged_pieces(merges: Sequence[tuple[str, str]], more: Sequence[str] = ()) -> list[str]:
    """Return the pieces of Llama's kind: bytes, letters, what merges make, and others that none makes."""
    return [UNKNOWN, BOS, EOS, *BYTES, "▁", *LETTERS, *("".join(pair) for pair in merges), *more]


def save_merged(folder: Path, pieces: list[str], merges: list[tuple[str, str]], *, begins: bool) -> None:
    """Write a tokenizer of Llama's kind."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN}
    save_pieces(folder, model, (BOS, 1) if begins else None, **names)
