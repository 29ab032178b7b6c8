from hypothesis import given
from hypothesis import strategies as st

from serving.models.answer import StopText

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
