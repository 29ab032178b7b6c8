"""Boxes in answers: as transformers' processor of KOSMOS-2 reads them, and what it does not read."""

from __future__ import annotations

import pytest

from bundle.grounding import GroundedObject, PatchGrounding

OF_TWO = "<patch_index_0003><patch_index_0067></delimiter_of_multi_objects/><patch_index_0100><patch_index_0103>"


@pytest.mark.parametrize(
    "said",
    [
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> by"
        "<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>.",
        f"<phrase> two dogs </phrase><object>{OF_TWO}</object> and<phrase> a lead</phrase> at dusk",
        "A line<phrase> up</phrase><object><patch_index_0033><patch_index_0993></object>, a point"
        "<phrase> there</phrase><object><patch_index_0500><patch_index_0500></object>",
        "No box at all. ",
    ],
)
def test_phrases_and_boxes_are_the_processors(said: str) -> None:
    from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes

    text, objects = clean_text_and_extract_entities_with_bboxes(said)
    found = PatchGrounding(side=32).read(said)
    assert found.text == text
    assert [(each.text, (each.start, each.end)) for each in found.objects] == [entity[:2] for entity in objects]
    for each, (_, _, boxes) in zip(found.objects, objects, strict=True):
        assert each.boxes == tuple(pytest.approx(box) for box in boxes)
        assert found.text[each.start : each.end] == each.text


def test_boxes_without_words_stand_where_they_are_said() -> None:
    said = f" It is<object>{OF_TWO}</object> here"
    (found,) = PatchGrounding(side=32).read(said).objects
    assert (found.text, found.start, found.end) == (None, 5, 5)
    assert len(found.boxes) == 2


@pytest.mark.parametrize(
    "said",
    [
        "a<phrase> b</phrase><object><patch_index_0001></object>",  # cut, or no pair
        "a<phrase> b</phrase><object><patch_index_0001><patch_index_0016></object>",  # beyond 4 x 4
        "a<phrase> b</phrase><object>",
    ],
)
def test_marks_that_make_no_box_are_dropped(said: str) -> None:
    found = PatchGrounding(side=4).read(said)
    assert found.text == "a b"
    assert found.objects == ()


def test_what_is_no_mark_is_said() -> None:
    found = PatchGrounding(side=4).read("1 < 2 > 0<phrase> <b></phrase><object><patch_index_0><patch_index_5></object>")
    assert found.text == "1 < 2 > 0 <b>"
    assert found.objects == (GroundedObject(None, 13, 13, ((0.125, 0.125, 0.375, 0.375),)),)
