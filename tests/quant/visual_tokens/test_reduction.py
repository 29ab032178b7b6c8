"""Reductions of whole images: quotas, tiles, digests, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import ParameterError
from bundle.image import TileLayout
from bundle.image_tokens import ShownImage
from quant.visual_tokens.reduction import Reduction
from quant.visual_tokens.table import METHODS


def image_of(seed: int, *, tiles: int = 3, num: int = 16, size: int = 8) -> ShownImage:
    rng = np.random.default_rng(seed)
    return ShownImage(
        rng.normal(size=(tiles, num, size)).astype(np.float32),
        seed.to_bytes(8, "big"),
        tower=rng.random((tiles, num, 1 + 3)).astype(np.float32),
        text=rng.normal(size=(5, size)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("keep", "num", "kept"),
    [
        (1, 64, 64),
        (0.25, 64, 16),
        (0.1, 64, 7),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (0.55, 100, 55),
        (1e-9, 64, 1),
        (0.5, 1, 1),
    ],
)
def test_the_quota_is_the_share_as_written_rounded_up(keep: float, num: int, kept: int) -> None:
    assert Reduction("random", keep).quota(num) == kept


def test_every_tile_of_an_image_has_a_quota_of_its_own() -> None:
    reduction = Reduction("uniform", 0.3)
    assert reduction.num_kept(TileLayout(), 16) == 5
    assert reduction.num_kept(TileLayout(rows=4, cols=4), 16) == 17 * 5
    assert reduction.num_kept(TileLayout(fewer_tokens=9), 16) == 3


@pytest.mark.parametrize("method", METHODS)
def test_tiles_are_reduced_one_by_one(method: str) -> None:
    image, reduction = image_of(1), Reduction(method, 0.3)
    found = reduction.apply(image)
    assert found.features.shape == (15, 8)
    for at in range(3):
        assert ((found.rows >= at * 16) & (found.rows < at * 16 + 16)).sum() == 5
    assert (np.diff(found.rows) > 0).all()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("random", "clustering")])
def test_permuting_tiles_permutes_what_is_left(method: str) -> None:
    image, reduction = image_of(2), Reduction(method, 0.4)
    order = [2, 0, 1]
    found = reduction.apply(image).features.reshape(3, 7, 8)
    turned = reduction.apply(replace(image, features=image.features[order], tower=image.tower[order]))
    assert turned.features.tobytes() == np.ascontiguousarray(found[order]).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_reduced_alike_whatever_is_reduced_beside_it(method: str) -> None:
    images, reduction = [image_of(seed) for seed in range(4)], Reduction(method, 0.4)
    together = [reduction.apply(image) for image in images]
    for image, found in zip(reversed(images), reversed(together), strict=True):
        alone = Reduction(method, 0.4).apply(replace(image, features=image.features.copy()))
        assert alone.features.tobytes() == found.features.tobytes()
        assert np.array_equal(alone.rows, found.rows)
        assert alone.digest == found.digest


@pytest.mark.parametrize("method", METHODS)
def test_one_tile_without_an_axis_for_tiles_is_one_tile(method: str) -> None:
    image = image_of(3, tiles=1)
    flat = replace(image, features=image.features[0], tower=image.tower[0])
    assert Reduction(method, 0.5).apply(flat).digest == Reduction(method, 0.5).apply(image).digest


@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_are_left_as_they_are_and_nothing_is_needed(method: str) -> None:
    image = ShownImage(image_of(4).features, b"whole")
    found = Reduction(method, 1).apply(image)
    assert found.features.tobytes() == image.features.tobytes()
    assert found.rows.tolist() == list(range(48))


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.needs_tower or entry.needs_text])
def test_what_a_method_needs_it_does_not_do_without(method: str) -> None:
    with pytest.raises(ValueError, match="comes without"):
        Reduction(method, 0.5).apply(ShownImage(image_of(4).features, b"bare"))


@given(st.sampled_from(sorted(METHODS)), st.floats(0.05, 0.95), st.integers(0, 50))
def test_equal_digests_have_equal_rows_and_features(method: str, keep: float, seed: int) -> None:
    """Of one image: other methods, shares and texts either leave the same or have another digest."""
    image = image_of(seed, tiles=1)
    other = replace(image, text=image_of(seed + 1, tiles=1).text)
    first = Reduction(method, round(keep, 3)).apply(image)
    for reduction in (Reduction("uniform", 0.5), Reduction("pooling", 0.5), Reduction("dart", round(keep, 3))):
        for shown in (image, other):
            second = reduction.apply(shown)
            is_same = np.array_equal(first.rows, second.rows) and np.array_equal(first.features, second.features)
            assert is_same == (first.digest == second.digest)


def test_means_speak_for_themselves() -> None:
    """Groups of one size with the same first tokens may have other members, under another method."""
    image = image_of(1)
    other = replace(image, features=image.features[:, ::-1].copy())
    assert Reduction("pooling", 0.5).apply(image).digest != Reduction("pooling", 0.5).apply(other).digest
    assert Reduction("uniform", 0.5).apply(image).digest == Reduction("uniform", 0.5).apply(other).digest


def test_digests_of_a_reduced_image_and_of_another_image_differ() -> None:
    image = image_of(1)
    twin = replace(image, digest=b"another")
    assert Reduction("uniform", 0.5).apply(image).digest != Reduction("uniform", 0.5).apply(twin).digest
    assert Reduction("uniform", 1).apply(image).digest != image.digest


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="random, uniform, pooling, dart") as refused:
        Reduction("magic", 0.5)
    assert refused.value.param == "vision.method"


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(ParameterError, match="above 0 and at most 1") as refused:
        Reduction("uniform", keep)
    assert refused.value.param == "vision.keep"
