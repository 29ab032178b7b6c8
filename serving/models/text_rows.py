"""Texts as rows of a text encoder: how long they may be, and where they are cut."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.directory import Bundle
from bundle.errors import ParameterError
from bundle.text import TOKENIZER, TextBatch, Tokenizer

ALL = -1
"""Of `truncate_tokens`: as many as the model reads."""
MOST_TOLD_TOKENS = 4096
"""Of a text whose tokens are asked for; what is read is shorter."""


def most_tokens(asked: int | None, fewest: int, longest: int) -> int | None:
    """Return to how many tokens longer texts are cut; None: they are refused.

    Args:
        asked: `truncate_tokens` of a request.
        fewest: Of which something of a text is left.
        longest: That the model reads.

    Raises:
        ParameterError: Fewer or more.
    """
    if asked is not None and asked != ALL and not fewest <= asked <= longest:
        raise ParameterError(
            f"truncate_prompt_tokens = {asked}: the model reads {fewest} to {longest} tokens; -1 is the most",
            "truncate_prompt_tokens",
        )
    return longest if asked == ALL else asked


class TextRows:
    """Makes rows of texts; safe to share between threads.

    Args:
        bundle: Whose tokenizer it is.
        max_tokens: Of a row, what stands around every text among them.
        pad_token_id: Fills shorter rows.
        pads_to_max: As `Tokenizer.encode_batch`.
        replaced_tokens: As of `bundle.dims.DualEncoderDims`; a text has one more at least.

    Attributes:
        tokenizer: The model's.
    """

    def __init__(
        self,
        bundle: Bundle,
        max_tokens: int,
        pad_token_id: int,
        *,
        pads_to_max: bool = False,
        replaced_tokens: int = 0,
    ) -> None:
        self.tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
        self._replaced = replaced_tokens
        self._fewest = len(self.tokenizer.with_special_tokens([])) + replaced_tokens + 1
        self._max_tokens, self._pad_token_id, self._pads_to_max = max_tokens, pad_token_id, pads_to_max

    def ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        """Return a text's ids, of a text that is too long to be read as well.

        Raises:
            ContextLengthError: It is far too long.
        """
        self.tokenizer.check_characters(len(text), max(MOST_TOLD_TOKENS, self._max_tokens))
        return self.tokenizer.encode(text, add_special_tokens=adds_special_tokens)

    def most_tokens(self, asked: int | None) -> int | None:
        """Return to how many tokens longer texts are cut; None: they are refused.

        Raises:
            ParameterError: More than the model reads, or so few that nothing of a text is left.
        """
        return most_tokens(asked, self._fewest, self._max_tokens)

    def batch(self, texts: Sequence[str | Sequence[int]], most_tokens: int | None = None) -> TextBatch:
        """Return texts as one batch, longer ones cut to `most_tokens`.

        Raises:
            ContextLengthError: A text is too long and not to be cut.
            ParameterError: Ids that are no text of the model's, or one so short that learned prompts leave none of it.
        """
        found = self.tokenizer.encode_batch(
            texts,
            max_tokens=self._max_tokens,
            pad_token_id=self._pad_token_id,
            pads_to_max=self._pads_to_max,
            most_tokens=most_tokens,
        )
        if self._replaced:
            self._check_length(found)
        return found

    def _check_length(self, found: TextBatch) -> None:
        """Refuse texts of which learned prompts would leave nothing."""
        if (fewest := int(found.attention_mask.sum(axis=1).min(initial=self._fewest))) < self._fewest:
            raise ParameterError(
                f"a text takes {fewest} tokens, and {self._fewest} or more are read: learned prompts stand in the "
                f"places of its first {self._replaced}. Write it as in training, or with as many words before it."
            )
