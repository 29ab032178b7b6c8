"""Texts to tokens and back for those who ask for nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.errors import ParameterError
from bundle.text import Tokenizer
from serving.protocol import TokenizeResult


def told_tokens(tokenizer: Tokenizer, token_ids: Sequence[int]) -> TokenizeResult:
    """Return ids with how the vocabulary writes each."""
    ids = tuple(map(int, token_ids))
    return TokenizeResult(ids, tuple(map(tokenizer.piece, ids)))


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Return the text of ids.

    Raises:
        ParameterError: The vocabulary has no such token.
    """
    for token_id in token_ids:
        if not tokenizer.piece(token_id):
            raise ParameterError(
                f"tokens: {token_id} is no token; the model has 0 to {tokenizer.vocab_size - 1}", "tokens"
            )
    return tokenizer.decode(token_ids, skip_special_tokens=False)
