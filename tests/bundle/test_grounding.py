"""Boxes in answers: as transformers' processor of KOSMOS-2 reads them, and what it does not read."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bundle.grounding import GroundedObject, KnownGrounding, LocationGrounding, PatchGrounding, PointGrounding

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


QUADS, OUTLINES = "with regions?", "with mask"
LOCATIONS = LocationGrounding(bins=1000, quads=(QUADS,), outlines=(OUTLINES,))
SIDE_PX = 10_000  # a bin is ten pixels, its middle a whole number


def located(*numbers: int) -> str:
    return "".join(f"<loc_{number}>" for number in numbers)


@pytest.mark.parametrize(
    ("form", "asked", "said"),
    [
        (
            "description_with_bboxes",
            "Locate",
            f"car{located(1, 2, 30, 40)}door handle{located(5, 6, 7, 8, 9, 1, 99, 999)}",
        ),
        ("description_with_bboxes", "Locate", f" a wheel{located(5, 6, 7, 8, 9)}"),
        ("bboxes", "Locate", located(0, 0, 999, 999, 4, 5, 6, 7)),
        ("ocr", QUADS, f"STOP{located(1, 2, 30, 2, 30, 40, 1, 40)}No 7{located(50, 60, 70, 61, 71, 80, 51, 79)}"),
        ("polygons", f"the cat {OUTLINES}", located(1, 2, 30, 2, 30, 40, 9)),
        ("polygons", OUTLINES, f"{located(1, 2, 30, 2, 30, 40)}<sep>{located(50, 60, 70, 61, 71, 80)}"),
        ("description_with_polygons", "a cat", f"a cat<poly>{located(1, 2, 30, 2, 30, 40)}</poly>"),
    ],
)
def test_locations_are_those_of_transformers_processor(form: str, asked: str, said: str) -> None:
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    class Words:
        all_special_tokens: tuple[str, ...] = ()

    theirs = Florence2PostProcessor({form: {}}, Words())(text=said, image_size=(SIDE_PX, SIDE_PX), parse_tasks=form)[
        form
    ]
    found = LOCATIONS.read(said, asked)
    ours = []
    for each in found.objects:
        assert found.text[each.start : each.end] == (each.text or "")
        ours += [(each.text or "", _pixels(shape)) for shape in each.polygons or each.boxes]
    expected = []
    for each in theirs:
        shapes = each.get("polygons") or [each.get("bbox") or each["quad_box"]]
        expected += [(each.get("cat_name", each.get("text")), list(shape)) for shape in shapes]
    assert ours == expected
    assert ours


def _pixels(shape: tuple[float, ...]) -> list[int]:
    return [round(number * SIDE_PX) for number in shape]


def test_outlines_have_the_boxes_around_them() -> None:
    (found,) = LOCATIONS.read(f"STOP{located(10, 2, 30, 4, 28, 40, 8, 38)}", QUADS).objects
    assert found.boxes == ((0.0085, 0.0025, 0.0305, 0.0405),)
    assert len(found.polygons[0]) == 8


def test_what_names_no_place_is_text_and_places_beyond_the_bins_are_dropped() -> None:
    assert LOCATIONS.read("a < b and <b>bold</b> ").text == "a < b and <b>bold</b> "
    found = LOCATIONS.read(f"a cat{located(1, 2, 3, 1000)}a dog{located(1, 2, 3)} and more", "Locate")
    assert (found.text, found.objects) == ("a cat, a dog, and more", ())
    (found,) = LOCATIONS.read(f"1 < 2 <b>cat</b>{located(1, 2, 3, 4)}", "Locate").objects
    assert found.text == "1 < 2 <b>cat</b>"


def test_places_of_more_digits_than_python_reads_are_beyond_all_places() -> None:
    far = "9" * 5000
    said = f"a<object><patch_index_{far}><patch_index_{far}></object>"
    assert PatchGrounding(side=4).read(said).objects == ()
    assert LOCATIONS.read("a" + f"<loc_{far}>" * 4, "Locate").objects == ()


@pytest.mark.parametrize(
    ("said", "text", "named"),
    [
        (
            'Counting the <points coords="1 1 073 160 2 1000 000" alt="boats">the boats</points> shows 2.',
            "Counting the the boats shows 2.",
            [("the boats", 13, [(1, 1, 0.073, 0.16), (2, 1, 1.0, 0.0)])],
        ),
        (
            '<tracks coords="0.5 1 100 200 2 300 400;1.0 2 310 420">ball</tracks> and <points coords="2 1 500 500"/>',
            "ball and ",
            [
                ("ball", 0, [(1, 0.5, 0.1, 0.2), (2, 0.5, 0.3, 0.4), (2, 1.0, 0.31, 0.42)]),
                (None, 9, [(1, 2, 0.5, 0.5)]),
            ],
        ),
        ('<points coords="1 1 2000 10">far</points> <points coords="a 1 2">x</points>', "far x", []),
        (
            '<points coords="1 1 5 nan;nan 1 5 5;inf 1 5 5;1 inf 5 5 2 5 5">x</points>',
            "x",
            [("x", 0, [(2, 1, 0.005, 0.005)])],
        ),
        ('cut <points coords="1 1 100 2', 'cut <points coords="1 1 100 2', []),
        ('<points coords="1 1 100 200">never closed', '<points coords="1 1 100 200">never closed', []),
        ("There are none.", "There are none.", []),
    ],
)
def test_points_are_read_from_their_tags(said: str, text: str, named: list[tuple[str | None, int, list[Any]]]) -> None:
    """Forms as Ai2's own tests and playground have them: of one image, of seconds of a video, without words."""
    found = PointGrounding(scale=1000).read(said)
    assert found.text == text
    told = [(each.text, each.start, [(p.number, p.at, p.x, p.y) for p in each.points]) for each in found.objects]
    assert told == named
    for each in found.objects:
        assert each.boxes == ()
        assert found.text[each.start : each.end] == (each.text or "")


@pytest.mark.parametrize(
    ("grounding", "piece", "end"),
    [
        (LOCATIONS, "word ", "<sep>"),
        (LOCATIONS, f"car{located(1, 2, 30, 40)}", ""),
        (PatchGrounding(side=32), f"<phrase>dogs</phrase><object>{OF_TWO}</object>", ""),
        (PointGrounding(scale=1000), '<points coords="', ""),
        (PointGrounding(scale=1000), 'coords="" ', ""),
    ],
    ids=["words", "places", "patches", "open tags", "one tag"],
)
def test_a_longer_answer_takes_no_more_than_its_share_of_time(grounding: KnownGrounding, piece: str, end: str) -> None:
    def read_s(size: int) -> float:
        said = "<points " + piece * (size // len(piece)) + end
        began_s = time.process_time()
        grounding.read(said, "Locate")
        return time.process_time() - began_s

    short_s = min(read_s(4_000) for _ in range(3))
    long_s = min(read_s(64_000) for _ in range(2))  # 16 times as long; by squares, it would be 256 times
    assert long_s < 64 * short_s + 0.2
