"""Token ids of one answer to text as they arrive."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.text import Tokenizer

_REPLACEMENT = "�"
"""What a decoder writes for bytes that are not (yet) a character."""
_MOST_UNFINISHED = 3
"""Bytes of a character of UTF-8 before its last one; a decoder writes at most one replacement for each."""
_LONGEST_WINDOW = 16
"""Ids decoded again for each new one, where none of them completes a character."""


class Detokenizer:
    """Ids of one answer to text, piece by piece, never half a character.

    The pieces joined equal the ids decoded at once, where those hold no broken character. Special tokens have no text
    and are passed over. Each step decodes only the newest ids and those of the piece before them: a decoder may strip
    or join at the edge of what it is given, so the newest piece is read off behind the last. Held back are at most the
    bytes of one unfinished character; what cannot become one any more comes out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._without_text = frozenset(token.id for token in tokenizer.added_tokens if token.is_special)
        self._replacement_ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in _REPLACEMENT.encode()]
        self._window: list[int] = []
        self._num_old = 0  # ids of the window whose text was given out when the last piece began
        self._num_whole = 0  # ids of the window whose text has been given out to its last character
        self._given = ""  # how the window's text begins: what was given out of it

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these ids complete; empty while a character is unfinished."""
        self._window.extend(token_id for token_id in token_ids if token_id not in self._without_text)
        text = self._tokenizer.decode(self._window)
        if not text.startswith(self._given):  # byte fallback judges a run of bytes as a whole, what was whole included
            if len(self._window) - self._num_whole <= _MOST_UNFINISHED:
                return ""
            self._begin_at(self._num_whole, "")
            self._given = ""
            text = self._tokenizer.decode(self._window)
        return self._shown(text, max(len(text) - self._num_unfinished(text), len(self._given)))

    def finish(self) -> str:
        """Return what was held back; an unfinished character comes out as U+FFFD."""
        text = self._tokenizer.decode(self._window)
        if not text.startswith(self._given):
            return self._tokenizer.decode(self._window[self._num_whole :])
        return self._shown(text, len(text))

    def _shown(self, text: str, end: int) -> str:
        piece, held = text[len(self._given) : end], text[end:]
        self._given = text[:end]
        if piece and not held:
            self._begin_at(self._num_old, held)
            self._num_old = self._num_whole = len(self._window)
        elif len(self._window) > _LONGEST_WINDOW:
            self._begin_at(len(self._window) - _LONGEST_WINDOW // 2, held)
        return piece

    def _begin_at(self, first: int, held: str) -> None:
        """Forget the ids before one of the window; the text behind it ends alike, with what is held back."""
        self._window = self._window[first:]
        self._num_old, self._num_whole = (max(count - first, 0) for count in (self._num_old, self._num_whole))
        text = self._tokenizer.decode(self._window)
        self._given = text[: max(len(text) - len(held), 0)]

    def _num_unfinished(self, text: str) -> int:
        """Return how many of the last characters may yet become another one."""
        if not text.endswith(_REPLACEMENT):
            return 0
        if self._window[-len(self._replacement_ids) :] == self._replacement_ids:
            return 0  # byte by byte, and it is whole: what was said is U+FFFD itself
        new = text[len(self._given) :]
        if len(self._window) - self._num_whole > _MOST_UNFINISHED:
            new = new[-_MOST_UNFINISHED:]
        return len(new) - len(new.rstrip(_REPLACEMENT))
