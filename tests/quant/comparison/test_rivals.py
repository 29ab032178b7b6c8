"""Another system's figures beside the variants: what is read, what is refused, what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import BundleFormatError
from quant.comparison import decode_speed
from quant.comparison.comparison import compare_bundles
from quant.comparison.page import write_comparison
from quant.comparison.rivals import Rivals, read_rivals, write_rivals
from quant.comparison.variants import Siblings, read_siblings
from runtime.settings import RuntimeSettings

FILES = (("Q8_0", 110_000, 0.003, 1.5), ("Q4_0", 50_000, 0.2, 2.0))


@pytest.fixture(scope="module")
def folders(variant_at) -> list[Path]:
    return [
        variant_at("int8", num_bytes=200_000, kl_mean=0.004, weights="int8"),
        variant_at("int4", num_bytes=100_000, kl_mean=0.04),
        variant_at("nf4", num_bytes=90_000, kl_mean=0.3),
    ]


@pytest.fixture(scope="module")
def siblings(folders: list[Path]) -> Siblings:
    (found,) = read_siblings(folders)
    return found


def silent(_: str) -> None:
    pass


def cells(page: Path) -> dict[str, list[str]]:
    """The rows of the other system's table by file, tags taken off."""
    (section,) = re.findall(r"other\.cpp on the same weights</h2>(.*?)</table>", page.read_text(encoding="utf-8"))
    rows = re.findall(r"<tr>(.*?)</tr>", section)[1:]
    read = [[re.sub(r"<.*?>", " ", cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]
    return {first: rest for first, *rest in read}


def test_figures_are_read_back_as_written(siblings: Siblings, rivals_of, tmp_path: Path) -> None:
    rivals = rivals_of(siblings.parent_sha256, *FILES)
    write_rivals(rivals, tmp_path / "rivals.json")
    assert read_rivals(tmp_path / "rivals.json") == rivals


def test_the_table_holds_every_file_and_the_best_of_ours_that_is_no_larger(
    siblings: Siblings, rivals_of, tmp_path: Path
) -> None:
    write_comparison(tmp_path / "page.html", [replace(siblings, rivals=(rivals_of(siblings.parent_sha256, *FILES),))])
    found = cells(tmp_path / "page.html")
    assert list(found) == ["F32", "Q8_0", "Q4_0"]
    assert "int8" in found["F32"][-1]
    # of int4 and nf4, which are no larger than Q8_0's 110,000 bytes, int4 has lost less
    assert found["Q8_0"][-1].split() == ["int4", "0.1", "MB,", "KL", "0.0400"]
    assert found["Q4_0"][-1].strip() == "none"
    assert "0.2000" in found["Q4_0"][1]
    assert "2.00" in found["Q4_0"][-3]
    assert "100 tokens/s" in found["Q4_0"][-3]


def test_other_samples_are_marked(siblings: Siblings, rivals_of, tmp_path: Path) -> None:
    pages = {}
    for source, num_samples in ((each, num) for each in ("cats.jsonl", "dogs.jsonl") for num in (200, 199)):
        rivals = rivals_of(siblings.parent_sha256, *FILES, source=source, num_samples=num_samples)
        write_comparison(tmp_path / "page.html", [replace(siblings, rivals=(rivals,))])
        pages[source, num_samples] = "compare with care" in (tmp_path / "page.html").read_text()
    assert [each for each, is_marked in pages.items() if not is_marked] == [("cats.jsonl", 200)]


def test_a_page_without_others_says_nothing_of_them(siblings: Siblings, tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", [siblings])
    assert "on the same weights" not in (tmp_path / "page.html").read_text()


def test_names_of_other_systems_cannot_break_the_page(siblings: Siblings, rivals_of, tmp_path: Path) -> None:
    rivals = rivals_of(siblings.parent_sha256, ("<script>x</script>", 9, 0.1, 1.0)).model_copy(
        update={"system": "<b>", "version": "<i>"}
    )
    write_comparison(tmp_path / "page.html", [replace(siblings, rivals=(rivals,))])
    assert not re.search(r"<script|<b>|<i>", (tmp_path / "page.html").read_text())


def test_figures_stand_beside_their_own_parents_variants(
    folders: list[Path], siblings: Siblings, rivals_of, tmp_path: Path
) -> None:
    write_rivals(rivals_of(siblings.parent_sha256, *FILES), tmp_path / "rivals.json")
    (group,), _ = compare_bundles(
        folders, tmp_path / "page.html", with_speed=False, progress=silent, rivals=[tmp_path / "rivals.json"]
    )
    assert [each.name for each in group.rivals[0].rivals] == ["Q8_0", "Q4_0"]


def test_figures_of_another_parent_are_refused(folders: list[Path], rivals_of, tmp_path: Path) -> None:
    write_rivals(rivals_of("f" * 64, *FILES), tmp_path / "rivals.json")
    with pytest.raises(BundleFormatError, match=r"beside tiny-smolvlm, of which no variant is given.*ffffffffffff"):
        compare_bundles(
            folders, tmp_path / "page.html", with_speed=False, progress=silent, rivals=[tmp_path / "rivals.json"]
        )


def test_files_timed_with_different_threads_are_refused(
    folders: list[Path], siblings: Siblings, rivals_of, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{threads}.json" for threads in (1, 2)]
    for threads, path in enumerate(paths, start=1):
        write_rivals(rivals_of(siblings.parent_sha256, *FILES, threads=threads), path)
    with pytest.raises(BundleFormatError, match=r"timed with \[1, 2\] threads"):
        compare_bundles(folders, tmp_path / "page.html", with_speed=False, progress=silent, rivals=paths)


def test_variants_are_timed_with_as_many_threads_as_the_others_had(
    folders: list[Path], siblings: Siblings, smolvlm_bundle: Path, rivals_of, tmp_path: Path, monkeypatch
) -> None:
    asked: list[int] = []
    runner = decode_speed.VisionLanguageRunner

    def opened(bundle: object, settings: RuntimeSettings) -> object:
        asked.append(settings.intra_threads)
        return runner(bundle, settings)

    monkeypatch.setattr(decode_speed, "VisionLanguageRunner", opened)
    monkeypatch.setattr(decode_speed, "_ROUNDS", 1)
    write_rivals(rivals_of(siblings.parent_sha256, *FILES, threads=3), tmp_path / "rivals.json")
    given = [smolvlm_bundle, folders[0]]
    compare_bundles(given, tmp_path / "page.html", with_speed=True, progress=silent, rivals=[tmp_path / "rivals.json"])
    assert asked == [3, 3]
    assert "Speed: 3 threads each" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [({"rivals": [{}]}, r"rivals\.0\.name: Field required"), ({"surprise": 1}, "surprise")],
)
def test_a_file_of_another_form_is_refused_with_the_field(
    change: dict[str, object], told: str, siblings: Siblings, rivals_of: Callable[..., Rivals], tmp_path: Path
) -> None:
    path = tmp_path / "rivals.json"
    write_rivals(rivals_of(siblings.parent_sha256, *FILES), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleFormatError, match=f"{told}.*Write it with python -m loadtests.llama_cpp"):
        read_rivals(path)


def test_a_file_that_cannot_be_read_or_written_is_told_by_name(siblings: Siblings, rivals_of, tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match=r"absent\.json cannot be read: No such file"):
        read_rivals(tmp_path / "absent.json")
    with pytest.raises(BundleFormatError, match=r"rivals\.json cannot be written: No such file"):
        write_rivals(rivals_of(siblings.parent_sha256, *FILES), tmp_path / "absent" / "rivals.json")
