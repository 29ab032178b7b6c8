from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import BundleError
from bundle.gates import Unmeasured
from bundle.report import CalibrationFacts
from devices.energy.account import FoundMeters
from devices.energy.meter import MeterError
from quant.comparison import comparison, decode_speed
from quant.comparison.comparison import compare_bundles
from quant.comparison.decode_speed import measure_speeds
from quant.comparison.page import verdict_sentence, write_comparison
from quant.comparison.variants import Siblings, read_siblings
from runtime.turns import Quartiles

VOID = {"meta", "br", "link", "img", "hr"}


class Structure(HTMLParser):
    """Checks that tags nest, and keeps texts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: Path) -> Structure:
    structure = Structure()
    structure.feed(page.read_text(encoding="utf-8"))
    assert structure.open == []
    return structure


@pytest.fixture(scope="module")
def folders(variant_at) -> list[Path]:
    return [
        variant_at("ternary", num_bytes=50_000, lost=150, passed=False),
        variant_at("int4", num_bytes=100_000, lost=3),
        variant_at("nf4", num_bytes=101_000, passed=None),
    ]


@pytest.fixture(scope="module")
def siblings(folders: list[Path]) -> Siblings:
    (found,) = read_siblings(folders)
    return found


def silent(_: str) -> None:
    pass


def test_the_heading_says_which_variant_to_take_and_its_numbers(siblings: Siblings, tmp_path: Path) -> None:
    share = f"{100_000 / siblings.fp32_bytes:.0%}"
    expected = f"Take int4: 0.1 MB of weights, {share} of fp32; 98.0% of 200 answers right, fp32 99.5%"
    assert verdict_sentence(siblings) == expected
    fast = replace(siblings, speed_ratios={"int4": Quartiles(1.4, 1.5, 1.6)})
    assert verdict_sentence(fast) == f"{expected}; 1.5 times the speed of fp32"
    write_comparison(tmp_path / "page.html", [siblings])
    assert f"<h1>{expected}</h1>" in (tmp_path / "page.html").read_text()


def test_the_heading_recommends_fp32_where_nothing_passes(siblings: Siblings) -> None:
    failed = replace(siblings, variants=siblings.variants[:1])
    assert verdict_sentence(failed).startswith(f"Keep {siblings.name} in fp32: none of its 1 smaller variants passes")


def test_the_page_holds_every_variants_numbers(siblings: Siblings, tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", [siblings])
    text = " ".join(parsed(tmp_path / "page.html").texts)
    for variant in siblings.variants:
        assert variant.label in text
        assert variant.verdict in text
    # int4: 3 of 200 lost beyond the parent's one; KL; top-1; replies; the failed gate of ternary with its limit.
    for figure in (
        "98.0%",
        "24.5%",
        "1.50",
        "0.0123",
        "0.0098 to 0.0148",
        "98.70%",
        "93.0%",
        "part at token 1.5",
        "≤ 0.05",
        "not measured",
    ):
        assert figure in text
    assert "cats.jsonl" in text
    assert "Some CPU, 4 cores, 8 GiB, largest cache 32 MiB" in text


def test_what_was_not_measured_is_listed(siblings: Siblings, tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", [siblings])
    items = re.findall(r"<li>(.*?)</li>", (tmp_path / "page.html").read_text())
    assert any("taste" in item for item in items)
    assert any("--no-speed" in item for item in items)
    assert any("bundle was not among" in item for item in items)


def test_gates_that_could_not_be_measured_are_told_with_their_reason(variant_at, tmp_path: Path) -> None:
    left = tuple(Unmeasured(name=name, reason="no sample has an image") for name in ("spread", "correlation"))
    (siblings,) = read_siblings([variant_at("int4", num_bytes=100_000, unmeasured=left)])
    write_comparison(tmp_path / "report.html", [siblings])
    texts = parsed(tmp_path / "report.html").texts
    assert texts.count("no sample has an image") == 2  # a row of the table for each
    assert "spread, correlation: no sample has an image" in texts
    assert "all 1, 2 not measured" in texts
    assert "nan" not in [text.strip() for text in texts]
    assert siblings.recommended is not None


def test_weights_that_were_fitted_to_the_test_are_told(siblings: Siblings, tmp_path: Path) -> None:
    first, *others = siblings.variants
    assert first.report is not None
    report = first.report.model_copy(update={"calibration": CalibrationFacts(source="cats.jsonl", num_samples=9)})
    write_comparison(tmp_path / "page.html", [replace(siblings, variants=(replace(first, report=report), *others))])
    items = re.findall(r"<li>(.*?)</li>", (tmp_path / "page.html").read_text())
    assert any("fitted to the samples of the test" in item and "(ternary)" in item for item in items)


def test_the_page_is_one_file_that_asks_for_nothing(siblings: Siblings, tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", [siblings])
    structure = parsed(tmp_path / "page.html")
    assert all(address.startswith("#") for address in structure.addresses)
    assert not {"script", "link", "img", "iframe"} & set(structure.seen)
    assert not re.search(r"https?:|@import|url\((?!#)", (tmp_path / "page.html").read_text())


def test_names_and_texts_cannot_break_the_page(variant_at, tmp_path: Path) -> None:
    (siblings,) = read_siblings([variant_at("int4", num_bytes=100_000)])
    hostile = replace(siblings, name="<script>alert(1)</script>")
    write_comparison(tmp_path / "page.html", [hostile])
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "2 x &lt;b&gt;" in page  # a planner's line
    assert "colour &amp; shape" in page  # a task


def test_charts_lie_beside_the_page_as_png(siblings: Siblings, tmp_path: Path) -> None:
    written = write_comparison(tmp_path / "page.html", [siblings])
    charts = ["page-loss-by-size.png", "page-accuracy-by-size.png", "page-loss-by-task.png"]
    assert [path.name for path in written] == ["page.html", *charts]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_several_checkpoints_have_a_section_and_files_each(siblings: Siblings, tmp_path: Path) -> None:
    written = write_comparison(tmp_path / "page.html", [siblings, replace(siblings, name="org/other")])
    assert f"page-1-{siblings.name}-loss-by-task.png" in [path.name for path in written]
    assert "page-2-org_other-loss-by-task.png" in [path.name for path in written]
    structure = parsed(tmp_path / "page.html")
    assert (structure.seen.count("h1"), structure.seen.count("section")) == (1, 2)


def test_variants_measured_on_other_samples_are_marked(variant_at, tmp_path: Path) -> None:
    (siblings,) = read_siblings([variant_at("int4", num_bytes=100_000), variant_at("int8", num_bytes=200_000, n=90)])
    write_comparison(tmp_path / "page.html", [siblings])
    assert "compare their losses" in (tmp_path / "page.html").read_text()


def test_bundles_are_timed_in_turns_and_compared(
    folders: list[Path], smolvlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_ms = itertools.cycle([20.0, 10.0])  # by the clock the parent takes twice as long, in each of its turns
    monkeypatch.setattr(decode_speed, "milliseconds_of", lambda work: (work(), next(times_ms))[1])
    lines: list[str] = []
    bundles = [smolvlm_bundle, folders[1]]
    groups, written = compare_bundles(bundles, tmp_path / "page.html", with_speed=True, progress=lines.append)
    assert "timing fp32, int4 in turns" in lines
    assert set(groups[0].speeds) == {"fp32", "int4"}
    assert groups[0].speeds["fp32"].median == pytest.approx(8 / 20e-3)  # eight tokens a round
    assert groups[0].speed_ratios == {"fp32": Quartiles(1, 1, 1), "int4": Quartiles(2, 2, 2)}
    assert {"page-loss-by-speed.png", "page-accuracy-by-speed.png"} <= {path.name for path in written}


def test_a_page_that_cannot_be_written_is_said_before_the_work(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "measure_speeds", lambda *_: pytest.fail("timed"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"cannot be written: (Not a directory|File exists)\. Choose another -o"):
        compare_bundles(folders, tmp_path / "file" / "page.html", with_speed=True, progress=silent)
    with pytest.raises(BundleError, match=r"is a folder; -o names the page, such as .*report\.html"):
        compare_bundles(folders, tmp_path, with_speed=True, progress=silent)


def test_the_folder_of_a_page_is_made(folders: list[Path], tmp_path: Path) -> None:
    _, written = compare_bundles(folders, tmp_path / "a" / "b" / "page.html", with_speed=False, progress=silent)
    assert {path.parent for path in written} == {tmp_path / "a" / "b"}
    assert sorted(written) == sorted((tmp_path / "a" / "b").iterdir())


@dataclass
class Ticking:
    """A meter that tells 2 J more at every look."""

    name: str = "a meter"
    covers: str = "board"
    period_s: float = 60.0
    told: float = 0.0

    def joules(self) -> float:
        if self.told < 0:
            raise MeterError("it is gone")
        self.told += 2.0
        return self.told

    def close(self) -> None:
        pass


def test_energy_is_told_by_item_where_a_meter_is_and_not_at_all_where_none_is(
    siblings: Siblings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_speed, "_work", lambda each, _: decode_speed._Work(each.label, 8, lambda: None))
    metered = measure_speeds(siblings.variants, silent, meters=FoundMeters((Ticking(),), ()))
    assert metered.per_joule == {variant.label: 8 / 2 for variant in siblings.variants}
    for meters in (FoundMeters((), ("none",)), FoundMeters((Ticking(told=-1.0),), ())):
        assert measure_speeds(siblings.variants, silent, meters=meters).per_joule == {}
    timed = replace(siblings, speeds=metered.rates)
    write_comparison(tmp_path / "silent.html", [timed])
    write_comparison(tmp_path / "metered.html", [replace(timed, per_joule={"int4": 41.26})])
    silent_page, metered_page = (parsed(tmp_path / f"{name}.html").texts for name in ("silent", "metered"))
    assert {"tokens/J", "41.3"} <= set(metered_page)
    assert "tokens/J" not in silent_page
    assert not any("meters told" in text for text in silent_page)
    assert any("meters told" in text for text in metered_page)


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [400, 1280])
def test_the_page_fits_a_phone_and_a_desk_and_asks_for_nothing(
    folders: list[Path], tmp_path: Path, look: Any, width_px: int
) -> None:
    compare_bundles(folders, tmp_path / "page.html", with_speed=False, progress=silent)
    seen = look(tmp_path / "page.html", width_px)
    assert seen.page_px <= width_px
    assert len(seen.requests) == 1
    assert len(seen.charts_px) == 3
    assert all(width >= 350 and height >= 100 for width, height in seen.charts_px)
    assert min(seen.letters_px) >= 11  # px, of the whole line: smaller letters are not read on a phone
    assert min(seen.names_px) >= 60
    assert seen.cut == []
