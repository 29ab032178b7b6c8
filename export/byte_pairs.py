"""A tokenizer of bytes and merges as older checkpoints have it: `vocab.json` and `merges.txt` to `tokenizer.json`.

transformers' class puts both together with what it knows by its name: how texts are cut before merges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bundle.errors import CheckpointError, UnsupportedConfigError

VOCAB, MERGES = "vocab.json", "merges.txt"
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Of Qwen2's tokenizer: words, single digits, punctuation with the line ends behind it, blanks."""


def _qwen2(backend: Tokenizer) -> None:
    cut = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _gpt2(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


_CLASSES: Mapping[str, Callable[[Tokenizer], None]] = {
    "Qwen2Tokenizer": _qwen2,
    "GPT2Tokenizer": _gpt2,
    "CodeGenTokenizer": _gpt2,
}
"""By `tokenizer_class`, its ending "Fast" aside."""


def byte_pair_tokenizer(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return `tokenizer.json` of a folder's vocabulary and merges; None where it has none.

    Args:
        folder: The checkpoint's.
        settings: `tokenizer_config.json`.

    Raises:
        CheckpointError: The files are not what they should be.
        UnsupportedConfigError: A class whose cuts are not known, or one that adds a blank before texts or a token.
    """
    if not all((folder / name).is_file() for name in (VOCAB, MERGES)):
        return None
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if name not in _CLASSES:
        raise UnsupportedConfigError(
            f"{folder} has {VOCAB} and {MERGES} and no tokenizer.json; its tokenizer_class {name!r} is none of "
            f"{', '.join(_CLASSES)}. Save the tokenizer with transformers' fast class, which writes tokenizer.json"
        )
    for key in ("add_prefix_space", "add_bos_token"):
        if settings.get(key):
            raise UnsupportedConfigError(
                f"tokenizer_config.json: {key} is true, and there is no tokenizer.json; save the tokenizer with "
                "transformers' fast class, which writes that"
            )
    try:
        backend = Tokenizer(models.BPE.from_file(str(folder / VOCAB), str(folder / MERGES)))
    except Exception as error:  # the tokenizers library raises bare Exception for what it cannot read
        raise CheckpointError(f"{folder / VOCAB} and {MERGES} are no vocabulary with merges: {error}") from error
    _CLASSES[name](backend)
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())
