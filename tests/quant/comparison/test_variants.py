from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bundle.errors import BundleFormatError
from quant.comparison.variants import read_siblings


def test_bundles_are_grouped_by_their_checkpoint(variant_at, smolvlm_bundle: Path, clip_bundle: Path) -> None:
    variants = [variant_at("int8", num_bytes=200_000), variant_at("int4", num_bytes=100_000)]
    (siblings,) = read_siblings([*variants, smolvlm_bundle])
    assert [variant.label for variant in siblings.variants] == ["int4", "int8"]  # the smallest first
    assert siblings.parent is not None
    assert siblings.parent.bundle.directory == smolvlm_bundle
    with pytest.raises(BundleFormatError, match="an fp32 bundle alone"):
        read_siblings([*variants, clip_bundle])


def test_the_smallest_variant_that_passes_is_recommended(variant_at) -> None:
    folders = [
        variant_at("ternary", num_bytes=50_000, passed=False),
        variant_at("int2", num_bytes=60_000, passed=None),
        variant_at("int4", num_bytes=100_000),
        variant_at("int8", num_bytes=200_000),
    ]
    (siblings,) = read_siblings(folders)
    assert [variant.verdict for variant in siblings.variants] == ["failed", "not gated", "passed", "passed"]
    assert siblings.recommended is not None
    assert siblings.recommended.label == "int4"


def test_of_two_equally_small_the_one_that_lost_less_is_recommended(variant_at) -> None:
    (siblings,) = read_siblings([variant_at("a", num_bytes=100_000, lost=2), variant_at("b", num_bytes=100_000)])
    assert siblings.recommended is not None
    assert siblings.recommended.label == "b"


def test_nothing_is_recommended_where_nothing_passes(variant_at) -> None:
    (siblings,) = read_siblings([variant_at("ternary", num_bytes=50_000, passed=False)])
    assert siblings.recommended is None


def test_the_front_leaves_out_what_is_larger_and_no_better(variant_at) -> None:
    folders = [
        variant_at("a", num_bytes=50_000, lost=20),
        variant_at("b", num_bytes=60_000, lost=30),
        variant_at("c", num_bytes=70_000, lost=5),
        variant_at("d", num_bytes=80_000, lost=5),
    ]
    (siblings,) = read_siblings(folders)
    assert [variant.label for variant in siblings.pareto] == ["a", "c"]


def test_variants_of_one_name_are_told_apart_by_their_folders(variant_at, tmp_path: Path) -> None:
    one = variant_at("int4", num_bytes=100_000)
    other = Path(shutil.copytree(one, tmp_path / "int4-block128"))
    (siblings,) = read_siblings([one, other])
    assert [variant.label for variant in siblings.variants] == ["int4", "int4-block128"]


def test_variants_whose_names_and_folders_are_alike_are_told_apart_and_one_folder_counts_once(
    variant_at, tmp_path: Path
) -> None:
    one = variant_at("int4", num_bytes=100_000)
    twin = Path(shutil.copytree(one, tmp_path / "elsewhere" / one.name))
    (siblings,) = read_siblings([one, twin, one])
    assert sorted(variant.label for variant in siblings.variants) == sorted([str(one), str(twin)])


def test_a_report_of_another_form_says_what_to_do(variant_at) -> None:
    folder = variant_at("int4", num_bytes=100_000)
    path = folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    size = path.stat().st_size
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["report.json"]["size_bytes"] = size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleFormatError, match=r"report.json: surprise: .*Quantize the fp32 bundle again"):
        read_siblings([folder])
