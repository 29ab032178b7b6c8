"""Marks held to values worked by hand, to definitions written out, and to scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.evaluation.sample import Sample
from quant.evaluation.scorers.box import box
from quant.evaluation.scorers.captions import cider, words_of
from quant.evaluation.scorers.choice import choice, chosen, is_unread
from quant.evaluation.scorers.edits import anls, cer, edit_distance
from quant.evaluation.scorers.exact import contains, exact
from quant.evaluation.scorers.ranking import hit_at, ndcg_at, recall_at
from quant.evaluation.scorers.soft_vqa import alike, soft_vqa

Make = Callable[..., Sample]


def test_exact_takes_any_of_several_answers(sample: Make) -> None:
    asked = sample("grey", "Gray.")
    assert [exact(reply, asked) for reply in ("gray", " GREY .", "dark grey", "")] == [1, 1, 0, 0]


def test_contains_takes_an_answer_among_words(sample: Make) -> None:
    assert [contains(reply, sample("No Entry")) for reply in ("It says: no  entry!", "no")] == [1, 0]


@pytest.mark.parametrize(("num", "mark"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_vqa_is_the_published_table_of_ten_answers(sample: Make, num: int, mark: float) -> None:
    asked = sample(*["two"] * num, *["three"] * (10 - num))
    assert soft_vqa("2", asked) == pytest.approx(mark)


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("The  Dog.", "dog"),
        ("a man, an apple", "man apple"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldn't've"),
        ("t-shirt/top", "t shirt top"),
        ("its", "its"),
    ],
)
def test_answers_are_made_alike_as_vqa_does(said: str, plain: str) -> None:
    assert alike(said) == plain


def textbook(a: str, b: str) -> int:
    """The recursion of Levenshtein's definition."""

    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return between(len(a), len(b))


@given(st.text("abä", max_size=8), st.text("abä", max_size=8))
def test_edit_distance_is_its_recursion(a: str, b: str) -> None:
    assert edit_distance(a, b) == textbook(a, b)


def test_character_errors_are_edits_over_letters(sample: Make) -> None:
    assert cer("sitting", sample("kitten")) == pytest.approx(3 / 6)
    assert cer("STOP", sample("stop")) == 1
    assert cer(" stop \n", sample("stop")) == 0
    assert cer("stop and go on", sample("stop")) == pytest.approx(10 / 4)
    assert cer("cat", sample("dog", "cats")) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("said", "answers", "mark"),
    [
        ("Coca Cola", ("coca cola",), 1.0),
        ("coca colla", ("coca cola",), 1 - 1 / 10),
        ("ab", ("abcd",), 0.0),  # half wrong: the threshold itself is wrong
        ("abc", ("abcd", "xyz"), 1 - 1 / 4),
        ("", ("a",), 0.0),
    ],
)
def test_anls_is_one_less_the_normalized_distance_below_a_half(
    sample: Make, said: str, answers: tuple[str, ...], mark: float
) -> None:
    assert anls(said, sample(*answers)) == pytest.approx(mark)


CHOICES = ("a cat", "red", "dark red", "None of these")


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("B", "B"),
        (" (b). ", "B"),
        ("**C**", "C"),
        ("C. dark red", "C"),
        ("The answer is B", "B"),
        ("Answer: (D)", "D"),
        ("I think the correct option is A.", "A"),
        ("A cat", "A"),
        ("red", "B"),
        ("It is dark red.", "C"),
        ("A red thing", "B"),  # an article, and the only choice that is told
        ("It is a cat, or red", ""),
        ("E", ""),
        ("The answer is B. No, the answer is C.", ""),
        ("", ""),
        ("predominantly", ""),
    ],
)
def test_a_choice_is_read_by_its_letter_or_its_text(reply: str, letters: str) -> None:
    assert chosen(reply, CHOICES) == set(letters)


def test_of_several_right_choices_all_and_no_other_must_be_taken(sample: Make) -> None:
    asked = sample("A", "C", choices=CHOICES)
    assert [choice(reply, asked) for reply in ("A, C", "a and c", "C A", "A", "A, B, C")] == [1, 1, 1, 0, 0]
    assert [is_unread(reply, asked) for reply in ("A, C", "hm")] == [0, 1]


def test_a_reply_of_several_letters_is_unread_where_one_is_right(sample: Make) -> None:
    asked = sample("B", choices=CHOICES)
    assert (choice("B", asked), choice("A, B", asked), is_unread("A, B", asked)) == (1, 0, 1)


def test_cider_is_ten_for_a_reference_and_nothing_for_other_words(sample: Make) -> None:
    pytest.importorskip("pycocoevalcap")
    asked = [sample("a small dog runs fast"), sample("two red cars stand still"), sample("the sea is very calm today")]
    same = cider(["A small dog runs fast.", "two red cars stand still", "cats"], asked)
    assert same[:2] == pytest.approx([10, 10])
    assert same[2] == 0
    half = cider(["a small dog sleeps", "two red cars stand still", "cats"], asked)
    assert 0 < half[0] < 10


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog, running.", "a man 's dog running"),
        ("Don't stop!", "do n't stop"),
        ("a black-and-white cat", "a black-and-white cat"),
        ("", ""),
    ],
)
def test_captions_are_cut_into_words_as_the_treebank_does(caption: str, words: str) -> None:
    assert words_of(caption) == words


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("[0, 0, 10, 10]", 1),
        ("The box is 0,0 to 10.0, 5.0.", 1),  # half of what both cover: just enough
        ("0 0 10 4.9", 0),
        ("5 0 15 10", 0),  # 50 of 150
        ("-1 0 10 10", 1),
        ("0 0 10", 0),
        ("nowhere", 0),
    ],
)
def test_a_box_is_right_from_an_overlap_of_a_half(sample: Make, reply: str, mark: float) -> None:
    assert box(reply, sample("(0, 0, 10, 10)")) == mark


def test_recall_is_the_share_found_and_a_hit_any_of_them() -> None:
    relevant = {"a": 1.0, "b": 2.0, "c": 0.0}
    ranking = ["c", "b", "d", "a"]
    assert [recall_at(ranking, relevant, k) for k in (1, 2, 4)] == [0, 0.5, 1]
    assert [hit_at(ranking, relevant, k) for k in (1, 2, 4)] == [0, 1, 1]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8).filter(any), st.integers(1, 8), st.randoms())
def test_ndcg_is_scikit_learns(grades: list[int], k: int, random: object) -> None:
    from sklearn.metrics import ndcg_score

    names = [str(place) for place in range(len(grades))]
    order = names.copy()
    random.shuffle(order)  # type: ignore[attr-defined]
    scores = [[-order.index(name) for name in names]]
    expected = ndcg_score([grades], scores, k=k)
    assert ndcg_at(order, dict(zip(names, map(float, grades), strict=True)), k) == pytest.approx(expected)


def test_ndcg_by_hand() -> None:
    found = ndcg_at(["x", "a", "b"], {"a": 2.0, "b": 1.0}, 3)
    assert found == pytest.approx((2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3)))
    assert np.isclose(ndcg_at(["a", "b"], {"a": 2.0, "b": 1.0}, 2), 1)
