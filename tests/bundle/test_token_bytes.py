"""A token's bytes: those of all tokens of a text, joined, are the text's."""

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


def test_an_added_token_is_its_own_text_and_an_id_without_a_token_nothing() -> None:
    tokenizer = byte_level()
    of = TokenBytes(tokenizer).of
    end_id = tokenizer.token_id("<end>")
    assert end_id is not None
    assert of(end_id) == b"<end>"
    assert of(9999) == b""
