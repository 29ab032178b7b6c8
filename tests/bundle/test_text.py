"""Text to ids and back: dual encoders' batches equal transformers', streamed text equals text decoded at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from bundle.detokenizer import Detokenizer
from bundle.errors import BundleFormatError, ContextLengthError, PromptError
from bundle.text import Tokenizer

TEXTS = ["a photo of a cat", "", "a  much   longer text, with MANY words and punctuation!!", "größe 日本 🙂", "x"]


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import transformers here, so that collecting takes none."""
    global CLIPTokenizer, PreTrainedTokenizerFast
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def clip_reference() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({piece: index for index, piece in enumerate(pieces)}, merges=[])


@pytest.fixture(scope="module")
def clip(clip_reference: CLIPTokenizer) -> Tokenizer:
    return Tokenizer(Backend.from_str(clip_reference.backend_tokenizer.to_str()))


def test_clip_batch_equals_the_reference_s(clip: Tokenizer, clip_reference: CLIPTokenizer) -> None:
    expected = clip_reference(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="np")
    found = clip.encode_batch(
        TEXTS, max_tokens=20, pad_token_id=clip_reference.pad_token_id, pads_to_max=False, most_tokens=20
    )
    np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(found.attention_mask, expected["attention_mask"])
    assert found.num_tokens == expected["attention_mask"].sum()


def test_truncated_text_keeps_the_end_token_that_clip_pools(clip: Tokenizer, clip_reference: CLIPTokenizer) -> None:
    found = clip.encode_batch([TEXTS[2]], max_tokens=7, pad_token_id=0, pads_to_max=False, most_tokens=7)
    assert found.input_ids.shape == (1, 7)
    assert found.input_ids[0, -1] == clip_reference.eos_token_id


def test_long_text_is_refused_with_its_length_unless_it_may_be_cut(clip: Tokenizer) -> None:
    with pytest.raises(ContextLengthError, match="takes 9 tokens; at most 8"):
        clip.encode_batch(["abcdefg"], max_tokens=8, pad_token_id=0, pads_to_max=False)
    assert clip.encode_batch(["abcdef"], max_tokens=8, pad_token_id=0, pads_to_max=False).input_ids.shape == (1, 8)


def test_no_texts_make_no_rows(clip: Tokenizer) -> None:
    assert clip.encode_batch([], max_tokens=8, pad_token_id=0, pads_to_max=False).input_ids.shape == (0, 0)
    assert clip.encode_batch([], max_tokens=8, pad_token_id=0, pads_to_max=True).input_ids.shape == (0, 8)


def test_siglip_batch_equals_the_reference_s(byte_level: Backend) -> None:
    """SigLIP ends each text, pads to the full length, and attends to the padding: its tokenizer gives no mask."""
    backend = Backend.from_str(byte_level.to_str())
    end = backend.token_to_id("<|im_end|>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", pair="$A $B <|im_end|>", special_tokens=[("<|im_end|>", end)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|im_end|>", model_input_names=["input_ids"])
    expected = wrapped(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="np")
    found = Tokenizer(Backend.from_str(backend.to_str())).encode_batch(
        TEXTS, max_tokens=16, pad_token_id=end, pads_to_max=True, most_tokens=16
    )
    np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
    assert "attention_mask" not in expected
    assert found.attention_mask.all()


def test_padding_and_truncation_stored_in_the_file_are_not_applied(byte_level: Backend) -> None:
    backend = Backend.from_str(byte_level.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    assert Tokenizer(backend).encode("hello world, this is long") == byte_level.encode("hello world, this is long").ids


def test_special_tokens_are_added_when_asked_for(byte_fallback: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_fallback.to_str()))
    bare = tokenizer.encode("the tin")
    assert tokenizer.encode("the tin", add_special_tokens=True) == [tokenizer.token_id("<s>"), *bare]


@pytest.mark.parametrize("text", ["<image>", "a<|im_end|>b", "<row_1_col_1>"])
def test_plain_encoding_spells_control_tokens_out(byte_level: Backend, text: str) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_level.to_str()))
    ids = tokenizer.encode_plain(text)
    assert tokenizer.decode(ids) == text
    assert not {token.id for token in tokenizer.added_tokens} & set(ids)


def test_plain_encoding_splits_a_control_token_that_is_also_a_word() -> None:
    """Unigram vocabularies list their control tokens among the pieces, and would choose them."""
    pieces = [("<unk>", 0.0), ("<image>", -1.0), *((letter, -9.0) for letter in "<image>")]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["<unk>", "<image>"])
    tokenizer = Tokenizer(backend)
    assert [token.id for token in backend.model.tokenize("<image>")] == [1]
    assert tokenizer.decode(tokenizer.encode_plain("<image>")).replace(" ", "") == "<image>"


def test_plain_encoding_refuses_a_control_token_of_one_character() -> None:
    backend = Backend(models.BPE(vocab={"a": 0, "§": 1}, merges=[]))
    backend.add_special_tokens(["§"])
    with pytest.raises(PromptError, match="control tokens"):
        Tokenizer(backend).encode_plain("a§")


@pytest.mark.parametrize("content", [None, "not json", '{"model": 3}'], ids=["missing", "no json", "no tokenizer"])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleFormatError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_file(path)


# --- streaming ---


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_streamed_text_equals_text_decoded_at_once(
    kind: str, text: str, byte_level: Backend, byte_fallback: Backend
) -> None:
    tokenizer = Tokenizer(Backend.from_str({"byte_level": byte_level, "byte_fallback": byte_fallback}[kind].to_str()))
    ids = tokenizer.encode(text)
    pieces = _streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 440), max_size=30))
def test_streamed_text_of_any_byte_level_ids_equals_text_decoded_at_once(ids: list[int], byte_level: Backend) -> None:
    """Broken characters and special tokens in between included."""
    tokenizer = Tokenizer(Backend.from_str(byte_level.to_str()))
    assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_spaces_after_a_special_token_survive_streaming(byte_fallback: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_fallback.to_str()))
    ids = [*tokenizer.encode("the tin"), tokenizer.token_id("</s>"), *tokenizer.encode("the")]
    assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids) == "the tin the"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("num_special", [7, 15, 16, 40])
def test_a_run_of_special_tokens_takes_no_text_with_it(
    kind: str, num_special: int, byte_level: Backend, byte_fallback: Backend
) -> None:
    tokenizer = Tokenizer(Backend.from_str({"byte_level": byte_level, "byte_fallback": byte_fallback}[kind].to_str()))
    special = next(token.id for token in tokenizer.added_tokens if token.is_special)
    half = tokenizer.encode("Ω")[-2:-1]
    ids = [*tokenizer.encode("hi"), *half, *[special] * num_special, *tokenizer.encode(" there")]
    assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["a\ufffd日", "\ufffd\ufffd🙂x", "日\ufffd日\ufffd", "\ufffd"])
def test_a_replacement_character_that_was_said_comes_once(text: str, byte_fallback: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_fallback.to_str()))
    ids = tokenizer.encode(text)
    assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids) == text


def test_unfinished_character_comes_out_at_the_end(byte_level: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_level.to_str()))
    half = tokenizer.encode("Ω")[:1]
    assert tokenizer.decode(half) == "�"
    assert _streamed(tokenizer, [*tokenizer.encode("ok"), *half])[-1] == "�"


def test_several_ids_may_arrive_at_once(byte_level: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_level.to_str()))
    ids = tokenizer.encode("größe 日本 🙂")
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push(ids[at : at + 3]) for at in range(0, len(ids), 3)) + detokenizer.finish()
    assert text == "größe 日本 🙂"


class _Watched(Tokenizer):
    """Remembers the most ids that were decoded at once."""

    most_ids = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.most_ids = max(self.most_ids, len(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_streaming_does_not_decode_the_whole_answer_at_every_step(byte_level: Backend) -> None:
    tokenizer = _Watched(Backend.from_str(byte_level.to_str()))
    ids = tokenizer.encode("größe 日本 🙂 " * 30)
    _streamed(tokenizer, ids)
    assert len(ids) > 200
    assert tokenizer.most_ids <= 8  # two characters of at most four bytes


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_bytes_that_are_no_character_come_out_as_they_arrive_and_cost_no_more_each(
    kind: str, byte_level: Backend, byte_fallback: Backend
) -> None:
    backend = Backend.from_str({"byte_level": byte_level, "byte_fallback": byte_fallback}[kind].to_str())
    tokenizer = _Watched(backend)
    broken = tokenizer.token_id("<0xF0>" if kind == "byte_fallback" else "ð")  # the first byte of four
    assert broken is not None
    ids = [*tokenizer.encode("the"), *[broken] * 2000]
    pieces = _streamed(tokenizer, ids)
    most_decoded, tokenizer.most_ids = tokenizer.most_ids, 0
    assert "".join(pieces) == tokenizer.decode(ids)
    assert most_decoded <= 17
    shown = 0
    for at, piece in enumerate(pieces[:-1]):
        shown += len(piece)
        assert at + 1 - shown <= 3  # at most an unfinished character is held back


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(3, 258), min_size=1, max_size=60), text=st.text(st.characters(codec="utf-8")))
def test_text_after_broken_bytes_comes_out_whole(ids: list[int], text: str, byte_fallback: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(byte_fallback.to_str()))
    word = tokenizer.encode("the")
    streamed = "".join(_streamed(tokenizer, [*ids, *word, *tokenizer.encode(text)]))
    assert streamed.endswith(tokenizer.decode([*word, *tokenizer.encode(text)]))


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    clip: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = len("<|startoftext|>")
    monkeypatch.setattr(clip, "encode", lambda text: pytest.fail("it was tokenized"))
    with pytest.raises(ContextLengthError, match=rf"holds {8 * longest + 1} characters; 8 tokens hold at most"):
        clip.encode_batch(["x" * (8 * longest + 1)], max_tokens=8, pad_token_id=0, pads_to_max=False)


@given(text=st.text(st.characters(exclude_categories=["Cs", "Z", "Cc", "Cf"])))
def test_no_text_that_fits_is_refused_for_its_characters(clip: Tokenizer, text: str) -> None:
    clip.check_characters(len(text), max(len(clip.encode(text)), 1))
