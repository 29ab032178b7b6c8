import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from bundle.detokenizer import Detokenizer
from bundle.text import Tokenizer
from serving.models.answer import AnswerText, StopText
from serving.protocol import SamplingParams

LETTERS = st.text("abc", max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=4)


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the stop string begins that is complete first; of several, the longest."""
    ends = [(end, end - len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    return min(ends)[1] if ends else None


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_shown_text_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    filter_ = StopText(stops)
    shown = "".join(filter_.push(piece) for piece in pieces)
    shown += filter_.finish()
    text = "".join(pieces)
    place = first_stop(text, stops)
    assert shown == (text if place is None else text[:place])
    assert filter_.is_stopped == (place is not None)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_nothing_is_shown_that_a_later_piece_makes_part_of_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    filter_, text, shown = StopText(stops), "", ""
    for piece in pieces:
        text += piece
        shown += filter_.push(piece)
        for continuation in (stop[i:] for stop in stops for i in range(len(stop))):
            place = first_stop(text + continuation, stops)
            assert place is None or len(shown) <= place


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    filter_ = StopText(["\nUser:"])
    assert filter_.push("a cat\nUs") == "a cat"
    assert filter_.push("ual") == "\nUsual"


def byte_level_tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


BYTES = byte_level_tokenizer()
"""Every token is one byte, so that every character beyond ASCII is cut."""
CHARACTERS = st.text("aé漢🙂", max_size=12)


def said(text: str, sampling: SamplingParams) -> tuple[str, bool]:
    """Return what is shown of a text that comes a byte at a time, and whether it was stopped."""
    answer = AnswerText(Detokenizer(BYTES), (), sampling)
    shown = ""
    for token_id in BYTES.encode(text):
        shown += answer.push(token_id)
        if answer.is_stopped:
            break
    return shown + answer.finish(), answer.is_stopped


@given(CHARACTERS, st.lists(st.text("aé漢🙂", min_size=1, max_size=3), max_size=3), st.booleans())
def test_a_stop_of_characters_that_are_cut_into_bytes_is_found(text: str, stops: list[str], includes: bool) -> None:
    shown, is_stopped = said(text, SamplingParams(stop=tuple(stops), includes_stop=includes))
    place = first_stop(text, stops)
    assert is_stopped == (place is not None)
    if place is None:
        assert shown == text
    elif includes:
        assert any(shown == text[:place] + stop for stop in stops)
    else:
        assert shown == text[:place]


def test_a_stop_that_ends_in_the_last_character_is_found_though_nothing_follows() -> None:
    assert said("a漢", SamplingParams(stop=("漢",))) == ("a", True)


def test_an_answer_that_ends_within_a_character_shows_that_it_is_broken() -> None:
    answer = AnswerText(Detokenizer(BYTES), (), SamplingParams(stop=("x",)))
    first, *_ = BYTES.encode("漢")
    assert answer.push(first) + answer.finish() == "\ufffd"


def test_the_first_min_tokens_stop_nothing() -> None:
    assert said("xaxa", SamplingParams(stop=("x",), min_tokens=2)) == ("xa", True)


@given(st.lists(st.text(" a", min_size=1, max_size=3), max_size=6), st.sampled_from(["", " ", "  "]))
def test_a_text_is_told_without_its_lead_however_it_is_cut(pieces: list[str], lead: str) -> None:
    text = "".join(pieces)
    assume(text.startswith(lead) or not text.startswith(" "))  # a structure lets all of it pass, or none

    class Pieces:
        def push(self, token_ids: list[int]) -> str:
            return pieces[token_ids[0]]

        def finish(self) -> str:
            return ""

    answer = AnswerText(Pieces(), (), SamplingParams(), lead)  # type: ignore[arg-type]
    shown = "".join(answer.push(place) for place in range(len(pieces))) + answer.finish()
    assert shown == text.removeprefix(lead)
