from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pages.frame import page, table
from pages.palette import LIGHT


class Rows(HTMLParser):
    """The cells of a table and their classes, row by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, list[tuple[str | None, str]]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.found.append((dict(attrs).get("class"), []))
        elif tag in ("td", "th"):
            self.found[-1][1].append((dict(attrs).get("class"), ""))

    def handle_data(self, data: str) -> None:
        kind, text = self.found[-1][1][-1]
        self.found[-1][1][-1] = kind, text + data


def test_heads_are_texts_and_cells_are_html() -> None:
    html = table(("a < b", "c"), [("<b>1</b>", "2")])
    assert Rows(html).found == [(None, [(None, "a < b"), (None, "c")]), (None, [(None, "1"), (None, "2")])]
    assert "<b>1</b>" in html


def test_the_chosen_row_and_the_column_of_sentences_are_marked() -> None:
    found = Rows(table(("name", "why"), [("a", "b"), ("c", "d")], chosen=1, prose=1)).found
    assert [row for row, _ in found] == [None, None, "chosen"]
    assert all([kind for kind, _ in cells] == [None, "text"] for _, cells in found)


def test_a_row_of_another_length_than_the_head_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("a", "b"), [("1",)])


def test_a_title_cannot_break_the_page_and_nothing_is_fetched() -> None:
    html = page("<script>", "<p>body</p>")
    assert "<title>&lt;script&gt;</title>" in html
    assert html.endswith("<body><p>body</p></body></html>\n")
    assert not re.search(r"https?:|@import|url\(|<script|<link", html)


def test_every_variable_that_the_style_uses_is_a_colour() -> None:
    assert set(re.findall(r"var\(--([\w-]+)\)", page("", ""))) <= LIGHT.keys()


@pytest.mark.browser
def test_only_the_table_scrolls_where_it_is_too_wide_and_long_names_wrap(tmp_path: Path, look: Any) -> None:
    name = "a name of many words that nobody needs to see whole on one line"
    body = f"<h1>{'x' * 200}</h1>" + table(
        (*"abcdefghij", "why"), [(name, *["1,000,000"] * 9, "because " * 20)], prose=10
    )
    (tmp_path / "page.html").write_text(page("wide", body), encoding="utf-8")
    seen = look(tmp_path / "page.html", 400)
    assert seen.page_px == 400
    assert 100 <= seen.names_px[0] <= 250
