from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageColor

from pages import png
from pages.drawing import Dots, Drawing, Line, Shape, Text, rectangle
from pages.palette import LIGHT
from pages.png import write_png

SCALE, MARGIN_PX = 3, 12


def written(path: Path, *parts: Line | Shape | Dots | Text) -> Image.Image:
    write_png(Drawing("", 400, 100, parts), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def at(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
    return image.getpixel((round((x + MARGIN_PX) * SCALE), round((y + MARGIN_PX) * SCALE)))


def test_a_file_is_large_and_white_around(tmp_path: Path) -> None:
    image = written(tmp_path / "a.png", Shape(rectangle(0, 0, 400, 100), "ink"))
    assert image.size == ((400 + 2 * MARGIN_PX) * SCALE, (100 + 2 * MARGIN_PX) * SCALE)
    assert image.getpixel((0, 0)) == image.getpixel((image.width - 1, image.height - 1)) == (255, 255, 255)


def test_parts_are_drawn_where_they_say_in_the_light_colours(tmp_path: Path) -> None:
    image = written(
        tmp_path / "a.png",
        Line([(10, 50), (60, 50)], "series-1", 4),
        Shape(rectangle(100, 20, 150, 80), "series-0", "bad"),
        Dots([(200, 50), (240, 50)], "series-2", 8, 1.0),
    )
    colours = {name: ImageColor.getrgb(value) for name, value in LIGHT.items()}
    assert at(image, 30, 50) == colours["series-1"]
    assert at(image, 125, 50) == colours["series-0"]
    assert at(image, 100, 50) == at(image, 125, 20) == colours["bad"]
    assert at(image, 200, 50) == at(image, 240, 50) == colours["series-2"]
    assert at(image, 220, 50) == at(image, 30, 60) == (255, 255, 255)


def test_a_dashed_line_has_gaps_of_the_ground(tmp_path: Path) -> None:
    image = written(tmp_path / "a.png", Line([(10, 50), (100, 50)], "ink", 4, is_dashed=True))
    ink = ImageColor.getrgb(LIGHT["ink"])
    found = [at(image, 10 + 9 * dash + offset, 50) == ink for dash in range(9) for offset in (2, 7)]
    assert found == [True, False] * 9


def test_half_opacity_is_halfway_to_white(tmp_path: Path) -> None:
    found = at(written(tmp_path / "a.png", Shape(rectangle(0, 0, 400, 100), "ink", opacity=0.5)), 200, 50)
    assert found == pytest.approx([(value + 255) / 2 for value in ImageColor.getrgb(LIGHT["ink"])], abs=1.5)


@pytest.mark.parametrize("fonts", [png._FONTS, ()], ids=["the-systems", "pillows"])
@pytest.mark.parametrize(("anchor", "left", "right"), [("start", 200, 300), ("middle", 150, 250), ("end", 100, 200)])
def test_a_text_stands_on_its_baseline_by_its_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fonts: tuple[str, ...], anchor: str, left: float, right: float
) -> None:
    monkeypatch.setattr(png, "_FONTS", fonts)
    image = written(tmp_path / "a.png", Text((200, 50), "mmmmmmmm", anchor, "ink"))
    ink = image.point(lambda value: 255 if value < 128 else 0).convert("L").getbbox()
    assert ink is not None
    edges = [edge / SCALE - MARGIN_PX for edge in ink]
    assert left - 1 <= edges[0] < edges[2] <= right + 1
    assert edges[2] - edges[0] > 60  # eight wide letters of 12 px
    assert edges[3] == pytest.approx(50, abs=0.7)


def test_a_halo_hides_what_lies_under_a_text(tmp_path: Path) -> None:
    ground, text = Shape(rectangle(0, 0, 400, 100), "series-0"), Text((200, 50), "m", "start", "ink", has_halo=True)
    assert at(written(tmp_path / "a.png", ground, text), 199.5, 46) == (255, 255, 255)
    assert at(written(tmp_path / "b.png", ground, Text((200, 50), "m", "start", "ink")), 199.5, 46) != (255, 255, 255)
