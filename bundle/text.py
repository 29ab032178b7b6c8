"""Text to token ids and back: `tokenizer.json` read by the tokenizers library, nothing else of Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import tokenizers

from bundle.errors import (
    BundleFormatError,
    ContextLengthError,
    OutOfMemoryError,
    ParameterError,
    PocketVLMError,
    PromptError,
)
from bundle.json_file import printable
from bundle.tokenizer_limits import check_tokenizer

TOKENIZER = "tokenizer.json"

_MOST_BYTES = 1 << 27
"""Of a `tokenizer.json`; one of 262,144 tokens takes 33 MB."""
_MOST_TOKEN_CHARACTERS = 1 << 12
"""Of one token, where a limit in tokens becomes one in characters."""
_PANIC = "PanicException"
"""A BaseException that a panic of Rust becomes; it has no module to import it from."""


@dataclass(frozen=True)
class AddedToken:
    """A token matched in raw text before the vocabulary's own rules.

    Attributes:
        text: What is matched.
        id: What it becomes.
        is_special: Left out when ids are decoded to text.
    """

    text: str
    id: int
    is_special: bool


@dataclass(frozen=True)
class TextBatch:
    """Texts as a text encoder takes them.

    Attributes:
        input_ids: [B, T] int64, padded on the right.
        attention_mask: [B, T] int64, 1 where the encoder attends.
        num_tokens: Of all texts together, padding not counted.
        token_type_ids: [B, T] int64, which of two texts a token belongs to; None where rows hold one text each.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    num_tokens: int
    token_type_ids: npt.NDArray[np.int64] | None = None


class Tokenizer:
    """A checkpoint's tokenizer; safe to share between threads, none of its methods changes it.

    Args:
        backend: Owned from here on; its own padding and truncation are switched off, as transformers does.

    Attributes:
        added_tokens: In the order of their ids.
        unknown_id: What the vocabulary writes where it cannot spell a text; None where it can spell all.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        with _failures_told("when it is read"):
            self._read(backend)

    def _read(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.added_tokens: tuple[AddedToken, ...] = tuple(
            AddedToken(token.content, id_, token.special)
            for id_, token in sorted(backend.get_added_tokens_decoder().items())
        )
        self.unknown_id: int | None = _unknown_id(backend)
        longest = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
        self._longest_characters = min(longest, _MOST_TOKEN_CHARACTERS)
        self._forbidden_ids = frozenset(token.id for token in self.added_tokens) - {self.unknown_id}
        self._special_ids = frozenset(token.id for token in self.added_tokens if token.is_special) - {self.unknown_id}
        self._affixes = _affixes(backend)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Return the tokenizer in a `tokenizer.json`.

        Raises:
            BundleFormatError: The file is missing or not a tokenizer.
        """
        try:
            if (size_bytes := path.stat().st_size) > _MOST_BYTES:
                raise ValueError(f"it holds {size_bytes} bytes; at most {_MOST_BYTES} are read")
            text = path.read_text(encoding="utf-8")
            check_tokenizer(json.loads(text))
            backend = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # the library raises bare Exception for what it cannot read, and panics
            if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                raise
            raise BundleFormatError(
                f"{path} is not a tokenizer: {printable(str(error))}. Export the checkpoint again."
            ) from error
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, text: str) -> int | None:
        """Return the id of exactly this token, None where the vocabulary lacks it."""
        found: int | None = self._backend.token_to_id(text)
        return found

    @property
    def decoder(self) -> object:
        """How the tokenizer joins tokens to text, as its file says it; None where that is nothing but joining."""
        return json.loads(self.text())["decoder"]

    def text(self) -> str:
        """Return the tokenizer as the text of a `tokenizer.json`."""
        text: str = self._backend.to_str()
        return text

    def piece(self, token_id: int) -> str:
        """Return how the vocabulary writes a token; empty where it has none of that id."""
        found: str | None = self._backend.id_to_token(token_id)
        return found or ""

    def check_characters(self, num_characters: int, max_tokens: int, what: str = "the text") -> None:
        """Refuse a text that is too long whatever it says, before it is tokenized, which takes 200 bytes a character.

        Raises:
            ContextLengthError: `max_tokens` of the longest tokens hold fewer characters.
        """
        limit = max_tokens * self._longest_characters
        if num_characters > limit:
            raise ContextLengthError(
                f"{what} holds {num_characters} characters; {max_tokens} tokens hold at most {limit}. Shorten it."
            )

    def shortened(self, text: str, max_tokens: int) -> str:
        """Return as much of a text as may matter to its first `max_tokens` tokens: what is beyond is not tokenized."""
        return text[: (max_tokens + 1) * self._longest_characters]

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text in which added tokens count as such (a rendered prompt, say)."""
        with _failures_told(f"on a text of {len(text)} characters"):
            ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        return self.with_special_tokens(ids) if add_special_tokens else ids

    def encode_two(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Return the ids of two texts as one row, with what the tokenizer puts around them, and the type of each."""
        with _failures_told(f"on texts of {len(first)} and {len(second)} characters"):
            found = self._backend.encode(first, second, add_special_tokens=True)
        return list(found.ids), list(found.type_ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text none of which is an added token (the unknown token aside), whatever the text says.

        Raises:
            PromptError: The vocabulary spells some single character as an added token.
        """
        ids = self._model_ids(text)
        if self._forbidden_ids.isdisjoint(ids):
            return ids
        # Some vocabularies hold the text of their control tokens as ordinary words too; no word is longer than this
        ids = [token for character in text for token in self._model_ids(character)]
        if self._forbidden_ids.isdisjoint(ids):
            return ids
        raise PromptError(f"{text!r} cannot be written without the model's control tokens; rephrase it")

    def encode_callers(self, text: str) -> list[int]:
        """Return the ids of a whole text from a caller, in which no special token counts as such.

        Raises:
            PromptError: As `encode_plain`.
        """
        return self.with_special_tokens(self.encode_harmless(text))

    def encode_harmless(self, text: str) -> list[int]:
        """Return the ids of a text from a caller, in which no special token counts as such, with nothing around it.

        Raises:
            PromptError: As `encode_plain`.
        """
        ids = self.encode(text)
        return ids if self._special_ids.isdisjoint(ids) else self.encode_plain(text)

    def encode_all_plain(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the ids of several texts, one behind the other, each as `encode_plain` returns them."""
        return np.array([token_id for text in texts for token_id in self.encode_plain(text)], np.int64)

    def _model_ids(self, text: str) -> list[int]:
        normalizer, splitter = self._backend.normalizer, self._backend.pre_tokenizer
        with _failures_told(f"on a text of {len(text)} characters"):
            if normalizer is not None:
                text = normalizer.normalize_str(text)
            words = [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
            return [token.id for word in words for token in self._backend.model.tokenize(word)]

    def with_special_tokens(self, ids: Sequence[int]) -> list[int]:
        """Return ids with what the tokenizer puts around every text (BOS, EOS, or nothing)."""
        before, after = self._affixes
        return [*before, *ids, *after]

    def encode_batch(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int,
        pad_token_id: int,
        pads_to_max: bool,
        most_tokens: int | None = None,
    ) -> TextBatch:
        """Return texts as a dual encoder's text tower was trained on them.

        Args:
            texts: B texts, or whole rows of ids, what the tokenizer puts around every text among them.
            max_tokens: Longest row, the tokens around the text included.
            pad_token_id: Fills shorter rows.
            pads_to_max: True: rows of `max_tokens`, the padding attended like text (SigLIP). False: rows as long as
                the longest text, the padding masked (CLIP).
            most_tokens: Cut longer texts to so many, keeping the token at the end; None: they are refused.

        Raises:
            ContextLengthError: A text is longer than `max_tokens` and is not cut.
            ParameterError: Ids that the vocabulary lacks, or without what is put around a text; or a text of no token,
                where nothing is put around one.
        """
        rows = [self._row(text, max_tokens, most_tokens) for text in texts]
        if not pads_to_max and not all(rows):
            raise ParameterError("a text holds nothing that the model reads; send at least one word")
        width = max_tokens if pads_to_max else max((len(row) for row in rows), default=0)
        input_ids = np.full((len(rows), width), pad_token_id, np.int64)
        attention_mask = np.full((len(rows), width), int(pads_to_max), np.int64)
        for row, ids, mask in zip(rows, input_ids, attention_mask, strict=True):
            ids[: len(row)] = row
            mask[: len(row)] = 1
        return TextBatch(input_ids, attention_mask, sum(len(row) for row in rows))

    def _row(self, text: str | Sequence[int], max_tokens: int, most_tokens: int | None) -> list[int]:
        if isinstance(text, str):
            if most_tokens is None:
                self.check_characters(len(text), max_tokens)
            ids = self.encode(text if most_tokens is None else self.shortened(text, most_tokens))
        else:
            ids = self._bare(text)
        num_around = sum(map(len, self._affixes))
        if len(ids) + num_around > max_tokens and most_tokens is None:
            raise ContextLengthError(
                f"the text takes {len(ids) + num_around} tokens; at most {max_tokens} are read. Shorten it."
            )
        room = max_tokens if most_tokens is None else most_tokens
        return self.with_special_tokens(ids[: max(room - num_around, 0)])

    def _bare(self, ids: Sequence[int]) -> list[int]:
        """Return a row's ids without what stands around every text.

        Raises:
            ParameterError: That is not there, or the vocabulary lacks an id.
        """
        before, after = self._affixes
        for token_id in ids:
            if not self.piece(token_id):
                raise ParameterError(f"token {token_id} is none of the model's, which are 0 to {self.vocab_size - 1}")
        end = len(ids) - len(after)
        if end < len(before) or [*ids[: len(before)], *ids[end:]] != [*before, *after]:
            raise ParameterError(
                f"the model reads texts between the tokens {before} and {after}, and these {len(ids)} ids do not stand "
                "so; send those that /tokenize answers, or the text (in LangChain: check_embedding_ctx_length=False)"
            )
        return list(ids[len(before) : end])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids."""
        try:  # without a context manager, which takes longer than a few ids
            text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            _raise_told(error, f"on {len(token_ids)} ids")
        return text


@contextmanager
def _failures_told(when: str) -> Iterator[None]:
    """Do for the length of a block what `_raise_told` does for an error."""
    try:
        yield
    except BaseException as error:
        _raise_told(error, when)


def _raise_told(error: BaseException, when: str) -> NoReturn:
    """Turn what a tokenizer lets out of itself into errors of ours: bare exceptions, and Rust's panics.

    Raises:
        BundleFormatError: The tokenizer fails.
        OutOfMemoryError: Memory ran out.
        BaseException: The error itself, where it is ours or no tokenizer's.
    """
    if isinstance(error, MemoryError):
        raise OutOfMemoryError(f"the model's tokenizer stopped {when}: memory ran out. Try again later.") from error
    is_panic = type(error).__name__ == _PANIC
    if isinstance(error, PocketVLMError) or not (isinstance(error, Exception) or is_panic):
        raise error
    raise BundleFormatError(f"the model's {TOKENIZER} fails {when}: {printable(str(error))}") from error


def _unknown_id(backend: tokenizers.Tokenizer) -> int | None:
    """Return the id that stands for what the vocabulary cannot spell, None where there is no such thing."""
    if isinstance(backend.model, tokenizers.models.Unigram):  # its Python class does not tell
        found: int | None = json.loads(backend.to_str())["model"].get("unk_id")
        return found
    text = backend.model.unk_token
    return None if text is None else backend.token_to_id(text)


def _affixes(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids put before and after every text."""
    bare = list(backend.encode("a", add_special_tokens=False).ids)
    full = list(backend.encode("a", add_special_tokens=True).ids)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise BundleFormatError(f"tokenizer.json turns 'a' into {bare}, but with special tokens into {full}")
