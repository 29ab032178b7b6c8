"""A small vocabulary, and answers by random logits that are held to a structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from bundle.text import Tokenizer
from serving.engine.sampling.choice import Choice
from serving.engine.sampling.grammar import Grammars
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams, Structure

MERGED = ('{"', '":', '","', '"}', "},", "true", "null", "12", ": ", ", ", "red", "é", "漢")
END = "<end>"


def byte_level_tokenizer() -> Tokenizer:
    """Bytes, some longer tokens that cross the borders of JSON's words, and an end token."""
    vocab = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in MERGED:
        letters = byte_level.pre_tokenize_str(text)[0][0]
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocab:
                vocab[letters[:end]] = len(vocab)
                merges.append((letters[: end - 1], letters[end - 1]))
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return Tokenizer(backend)


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's way: a blank is "▁", and what the vocabulary lacks is spelled in bytes."""
    letters = ["▁", *'{}[]":,abcdeghnorstuvl0123456789-.', '{"', '":', "▁1", "tr", "true", "red"]
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {letter: place for place, letter in enumerate(letters, len(vocab))}
    merges = [("{", '"'), ('"', ":"), ("▁", "1"), ("t", "r")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END])
    return Tokenizer(backend)


class Held:
    """A vocabulary and its grammars; V is larger than the vocabulary, as a padded head's is."""

    def __init__(self, tokenizer: Tokenizer, lead: str = "") -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size + 13
        self.end_id = tokenizer.token_id(END)
        assert self.end_id is not None
        self.grammars = Grammars(tokenizer, self.vocab_size, (self.end_id,), 2, lead)

    def state(self, structure: Structure, **sampling: Any) -> SamplingState:
        compiled = self.grammars.compiled(structure)
        constraint = self.grammars.constraint(compiled.matchers[0], structure.param)
        return SamplingState(SamplingParams(**sampling), (), (self.end_id,), constraint)

    def answer(self, structure: Structure, seed: int, max_tokens: int = 400, haste: float = 4.0) -> str | None:
        """Return an answer by random logits; None where it is not at its end after so many tokens.

        Args:
            structure: That it is held to.
            seed: Of the logits.
            max_tokens: At most.
            haste: Added to the score of the end and of what closes, so that most answers end.
        """
        rng, state, ids = np.random.default_rng(seed), self.state(structure, temperature=1.0, seed=seed), []
        closing = [self.end_id, *(self.tokenizer.token_id(each) for each in '}]"')]
        for _ in range(max_tokens):
            logits = rng.normal(scale=2, size=(1, self.vocab_size)).astype(np.float32)
            logits[0, closing] += haste
            [choice] = Sampler().choose(logits, [state])
            assert isinstance(choice, Choice), choice
            if choice.token_id == self.end_id:
                return self.tokenizer.decode(ids)
            ids.append(choice.token_id)
        return None


@pytest.fixture(scope="module", params=[byte_level_tokenizer, byte_fallback_tokenizer], ids=["bytes", "fallback"])
def held(request: pytest.FixtureRequest) -> Any:
    made = Held(request.param())
    yield made
    made.grammars.close()


@pytest.fixture(scope="module")
def by_bytes() -> Any:
    made = Held(byte_level_tokenizer())
    yield made
    made.grammars.close()


@pytest.fixture
def make_held():
    """The function that makes one of a vocabulary of bytes; its maker closes it."""
    return lambda lead="": Held(byte_level_tokenizer(), lead)
