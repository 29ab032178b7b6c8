"""The bytes that single tokens stand for, as logprobs tell them: a token may be a part of a character."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Sequence

from bundle.text import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BLANK = "▁"
"""What SentencePiece writes for a blank."""


class TokenBytes:
    """One tokenizer's vocabulary as bytes, looked up one token at a time.

    Args:
        tokenizer: The model's.

    Attributes:
        special_ids: Added tokens that are no part of a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = json.dumps(tokenizer.decoder, ensure_ascii=False)
        self._tokenizer = tokenizer
        self.special_ids = frozenset(token.id for token in tokenizer.added_tokens if token.is_special)
        self._added = {token.id: token.text for token in tokenizer.added_tokens}
        self._bytes_of = _byte_letters() if '"ByteLevel"' in decoder else {}
        self._has_blanks = _BLANK in decoder or '"Metaspace"' in decoder
        self._has_bytes = '"ByteFallback"' in decoder
        self._suffix_marks = ("##",) if '"WordPiece"' in decoder else ()

    def detokenizer(self, shown_ids: Collection[int] = ()) -> BytesDetokenizer:
        """Return a fresh decoder of one answer's ids as they arrive; those of `shown_ids` have text, special or not."""
        return BytesDetokenizer(self, self.special_ids.difference(shown_ids))

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes; an added token's are its own text, and those of an id without a token none."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.piece(token_id)
        if self._bytes_of and all(letter in self._bytes_of for letter in piece):
            return bytes(self._bytes_of[letter] for letter in piece)
        if self._has_bytes and (found := _BYTE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        for mark in self._suffix_marks:
            piece = piece.removeprefix(mark)
        return (piece.replace(_BLANK, " ") if self._has_blanks else piece).encode()


class BytesDetokenizer:
    """Ids of one answer to text by the bytes of each, never half a character.

    A tokenizer's own decoder may do more than join: drop a blank at the beginning, or tidy up before a comma. Where an
    answer is held to a structure, nothing may be changed after it was chosen.

    Args:
        token_bytes: Of the model's tokenizer.
        without_text: Ids that are passed over.
    """

    def __init__(self, token_bytes: TokenBytes, without_text: Collection[int]) -> None:
        self._token_bytes = token_bytes
        self._without_text = frozenset(without_text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these ids complete; empty while a character is unfinished."""
        texts = (token_id for token_id in token_ids if token_id not in self._without_text)
        return self._decoder.decode(b"".join(self._token_bytes.of(token_id) for token_id in texts))

    def finish(self) -> str:
        """Return what was held back; an unfinished character comes out as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _byte_letters() -> dict[str, int]:
    """Return the letter that a byte-level vocabulary writes for each byte: itself where it can be seen (GPT-2)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}
