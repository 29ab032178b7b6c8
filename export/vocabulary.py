"""A checkpoint's tokenizer files, as far as a conversion reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundle.errors import CheckpointError, PocketVLMError, UnsupportedConfigError
from export.added_tokens import with_added_tokens
from export.byte_pairs import byte_pair_tokenizer
from export.cleaning import with_cleaning
from export.lowercase import with_training_case
from export.settings_file import read_settings

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer's files, as far as a conversion reads them.

    Attributes:
        text: `tokenizer.json`, with the tokens that other files state and the case of the model's training.
        ids: Token text to id, added tokens included.
        settings: `tokenizer_config.json`.
        template_tokens: Special tokens by name.
        note: What was changed, in words; None where nothing.
    """

    text: str
    ids: dict[str, int]
    settings: dict[str, Any]
    template_tokens: dict[str, str]
    note: str | None = None

    @classmethod
    def read(cls, checkpoint: Path, *, lower_cases: bool, cleans: str | None = None) -> Vocabulary:
        """Return the vocabulary of a checkpoint's folder.

        Args:
            checkpoint: The folder.
            lower_cases: Texts are cut into tokens of lower case, whatever the files say.
            cleans: A name of `export.cleaning.CLEANINGS`, whatever the files say.

        Raises:
            CheckpointError: There is no tokenizer, or it cannot be read.
        """
        path = checkpoint / "tokenizer.json"
        settings = read_settings(checkpoint / "tokenizer_config.json", required=False)
        merged = None if path.is_file() else byte_pair_tokenizer(checkpoint, settings)
        if not path.is_file() and merged is None:
            raise CheckpointError(
                f"{path} is missing. A sentencepiece model alone is not read; save the tokenizer with transformers' "
                "fast class, which writes tokenizer.json."
            )
        if merged is None:
            read_settings(path)
        legacy = read_settings(checkpoint / "special_tokens_map.json", required=False)
        named = {name: settings.get(name, legacy.get(name)) for name in _TOKEN_NAMES}
        tokens = {name: token_text(token) for name, token in named.items() if token is not None}
        added = read_settings(checkpoint / "added_tokens.json", required=False)
        try:
            text = with_added_tokens(merged or path.read_text(encoding="utf-8"), settings, legacy, added)
            text, note = with_training_case(text, settings) if lower_cases else (text, None)
            text = text if cleans is None else with_cleaning(text, cleans)
        except PocketVLMError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception for what it cannot read
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        return cls(text, _token_ids(json.loads(text)), settings, tokens, note)

    def with_tokens(self, tokens: Mapping[str, int]) -> Vocabulary:
        """Return the vocabulary with special tokens behind it, by their text and id.

        Raises:
            UnsupportedConfigError: One would get another id.
        """
        if not tokens:
            return self
        stated = {str(number): {"content": text, "special": True} for text, number in tokens.items()}
        text = with_added_tokens(self.text, {"added_tokens_decoder": stated}, {}, {})
        return replace(self, text=text, ids=_token_ids(json.loads(text)))

    def cut_at_specials(self) -> Vocabulary:
        """Return the vocabulary in which a text behind a special token begins as a text does, with a blank before it.

        That is what becomes of texts that are cut there and made tokens each by itself.
        """
        content = json.loads(self.text)
        before = content.get("pre_tokenizer") or {}
        spaces = [each for each in (before, *before.get("pretokenizers", ())) if each.get("type") == "Metaspace"]
        if not any(each.get("prepend_scheme") == "first" for each in spaces):
            return self
        for each in spaces:
            each["prepend_scheme"] = "always"
        return replace(self, text=json.dumps(content, ensure_ascii=False, indent=2))

    def with_names(self, names: Mapping[str, str]) -> Vocabulary:
        """Return the vocabulary with names of special tokens where the files have none, of tokens that it has."""
        known = {name: token for name, token in names.items() if token in self.ids}
        return replace(self, template_tokens={**known, **self.template_tokens}) if known else self

    @property
    def last(self) -> tuple[str, int]:
        """Return text and id of the token with the highest id."""
        return max(self.ids.items(), key=lambda item: item[1], default=("", 0))

    def named_id(self, name: str) -> int | None:
        """Return the id of "bos_token", "eos_token", ..., None where the tokenizer has none."""
        text = self.template_tokens.get(name)
        return None if text is None else self.id_of(text, name)

    def id_of(self, text: str, role: str) -> int:
        """Return a token's id.

        Raises:
            UnsupportedConfigError: The vocabulary lacks it.
        """
        if text not in self.ids:
            raise UnsupportedConfigError(f"{role} {text!r} is not in the vocabulary of tokenizer.json")
        return self.ids[text]


def _token_ids(content: Mapping[str, Any]) -> dict[str, int]:
    vocab = content.get("model", {}).get("vocab", {})
    # Unigram models list [piece, score] pairs whose place is the id; all others map text to id
    ids = {piece[0]: index for index, piece in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    ids.update({token["content"]: token["id"] for token in content.get("added_tokens", [])})
    return ids


def token_text(token: str | Mapping[str, Any]) -> str:
    """Return a token's text, as settings files write tokens in two ways."""
    return token if isinstance(token, str) else str(token["content"])
