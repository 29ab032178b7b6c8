"""A token's bytes: those of all tokens of a text, joined, are the text's."""

import llguidance
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from bundle.text import Tokenizer
from bundle.token_bytes import TokenBytes


def byte_level() -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend)


def byte_fallback() -> Tokenizer:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258, "<unk>": 259}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@given(text=st.text(max_size=30).filter(lambda text: "▁" not in text))
def test_the_bytes_of_a_texts_tokens_are_the_texts(make, text: str) -> None:
    tokenizer = make()
    of = TokenBytes(tokenizer).of
    assert b"".join(of(token_id) for token_id in tokenizer.encode(text)) == text.encode()


def dropping_first_blank() -> Tokenizer:
    """Llama's way: the blank that is put before every text is dropped from what is decoded."""
    tokenizer = byte_fallback()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer._backend.decoder = decoders.Sequence(parts)
    return Tokenizer(tokenizer._backend)


@pytest.mark.parametrize("make", [byte_level, byte_fallback, dropping_first_blank])
@given(text=st.text(max_size=30).filter(lambda text: "▁" not in text))
def test_a_text_that_comes_token_by_token_is_changed_in_nothing(make, text: str) -> None:
    tokenizer = make()
    detokenizer = TokenBytes(tokenizer).detokenizer()
    pieces = [detokenizer.push([token_id]) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.finish() == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_llguidance_takes_tokens_for_the_same_bytes(make) -> None:
    """What a structure is checked by is what is shown."""
    tokenizer = make()
    theirs = llguidance.LLTokenizer(tokenizer.text(), eos_token=0)
    of = TokenBytes(tokenizer).of
    special = {token.id for token in tokenizer.added_tokens}
    for token_id in range(tokenizer.vocab_size):
        # 0xFF, which no text holds, is how llguidance marks what is no text.
        if token_id not in special and tokenizer.piece(token_id) != "<unk>" and of(token_id) != b"\xff":
            assert theirs.decode_bytes([token_id]) == of(token_id), tokenizer.piece(token_id)


def test_an_added_token_is_its_own_text_and_an_id_without_a_token_nothing() -> None:
    tokenizer = byte_level()
    of = TokenBytes(tokenizer).of
    end_id = tokenizer.token_id("<end>")
    assert end_id is not None
    assert of(end_id) == b"<end>"
    assert of(9999) == b""
