"""Each method on tiles small enough to be worked out by hand, and beside a port of its own in loops or torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quant.visual_tokens.table import METHODS, load_reducer
from quant.visual_tokens.tile import Kept, Tile, TowerView

SHARES = [0.1, 0.25, 0.4, 0.5, 0.75, 0.95]
MERGING = ["pooling", "clustering", "merging", "dpc-knn"]
CHOOSING = ["random", "uniform", "dart", "fastervlm", "textmonkey"]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def tile_of(seed: int, *, side: int = 6, size: int = 12, dtype: type = np.float32) -> Tile:
    rng, num = np.random.default_rng(seed), side * side
    received = rng.random(num).astype(np.float32)
    return Tile(
        (rng.normal(size=(num, size)) + rng.normal(size=size)).astype(dtype),
        (side, side),
        seed.to_bytes(4, "big"),
        TowerView(received / received.sum(), rng.normal(size=(num, 5)).astype(np.float32)),
        rng.normal(size=(9, size)).astype(np.float32),
    )


def reduced(name: str, tile: Tile, quota: int) -> Kept:
    return load_reducer(name)(tile, quota)


def bare(features: list[list[float]], grid: tuple[int, int] | None = None, **fields: object) -> Tile:
    return Tile(np.array(features, np.float32), grid, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_quota_is_left_in_rising_places_and_of_the_tiles_type(name: str, share: float) -> None:
    for seed, dtype in enumerate([np.float32, np.float16]):
        tile = tile_of(seed, dtype=dtype)
        quota = int(np.ceil(share * 36))
        kept = reduced(name, tile, quota)
        assert kept.features.shape == (quota, 12)
        assert kept.features.dtype == dtype
        assert len(kept.rows) == len(kept.sizes) == quota
        assert (np.diff(kept.rows) > 0).all()
        assert kept.rows[0] >= 0
        assert kept.rows[-1] < 36
        assert np.isfinite(kept.features.astype(np.float32)).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_tile_and_its_text_are_read_and_not_written(name: str) -> None:
    tile = tile_of(3)
    before = tile.features.copy(), tile.text.copy(), tile.tower.received.copy()
    first, again = reduced(name, tile, 9), reduced(name, tile, 9)
    assert np.array_equal(before[0], tile.features)
    assert np.array_equal(before[1], tile.text)
    assert np.array_equal(before[2], tile.tower.received)
    assert first.features.tobytes() == again.features.tobytes()
    assert np.array_equal(first.rows, again.rows)


@pytest.mark.parametrize("name", CHOOSING)
def test_what_is_chosen_keeps_its_bits(name: str) -> None:
    tile = tile_of(4)
    kept = reduced(name, tile, 11)
    assert kept.features.tobytes() == tile.features[kept.rows].tobytes()
    assert (kept.sizes == 1).all()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", MERGING)
def test_what_is_merged_adds_up_to_what_was_there(name: str, share: float) -> None:
    tile = tile_of(5)
    kept = reduced(name, tile, int(np.ceil(share * 36)))
    assert kept.sizes.sum() == 36
    assert kept.sizes.min() >= 1
    total = (kept.sizes[:, None] * kept.features).sum(axis=0)
    assert np.allclose(total, tile.features.sum(axis=0), rtol=1e-4, atol=1e-4)
    alone = kept.sizes == 1
    assert kept.features[alone].tobytes() == tile.features[kept.rows[alone]].tobytes()


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("name", ["clustering", "merging", "dpc-knn"])
def test_copies_go_first(name: str, scale: float) -> None:
    rng = np.random.default_rng(6)
    distinct = rng.normal(size=(8, 16)).astype(np.float32) * np.float32(scale)
    tile = Tile(np.repeat(distinct, 2, axis=0), (4, 4), b"copies")
    kept = reduced(name, tile, 8)
    assert (kept.sizes == 2).all()
    assert np.allclose(kept.features, distinct, rtol=1e-6)
    assert kept.rows.tolist() == list(range(name == "merging", 16, 2))  # pairs go by the odd one there


@pytest.mark.parametrize("name", MERGING)
def test_a_tile_of_one_colour_is_that_colour(name: str) -> None:
    tile = Tile(np.full((16, 4), 3.0, np.float32), (4, 4), b"one colour")
    kept = reduced(name, tile, 5)
    assert len(kept.rows) == 5
    assert (kept.features == 3.0).all()


def test_lots_are_the_same_for_the_same_tile_and_others_for_another() -> None:
    tile, other = tile_of(1, side=16), tile_of(2, side=16)
    same = Tile(tile.features * 2, tile.grid, tile.digest)
    assert np.array_equal(reduced("random", tile, 64).rows, reduced("random", same, 64).rows)
    assert not np.array_equal(reduced("random", tile, 64).rows, reduced("random", other, 64).rows)


def test_lots_favour_no_place() -> None:
    counts = np.zeros(16)
    for seed in range(2000):
        counts[reduced("random", Tile(np.zeros((16, 1), np.float32), None, seed.to_bytes(4, "big")), 4).rows] += 1
    assert counts.min() > 400  # of 500: six standard deviations
    assert counts.max() < 600


def test_uniform_takes_one_of_every_square() -> None:
    kept = reduced("uniform", tile_of(0, side=6), 9)
    squares = {(row // 6 // 2, row % 6 // 2) for row in kept.rows.tolist()}
    assert len(squares) == 9


@pytest.mark.parametrize(("quota", "rows"), [(3, [1, 5, 8]), (5, [1, 3, 5, 7, 9]), (10, list(range(10)))])
def test_uniform_spreads_over_what_has_no_grid(quota: int, rows: list[int]) -> None:
    assert reduced("uniform", Tile(np.zeros((10, 1), np.float32)), quota).rows.tolist() == rows


def test_pooling_a_quarter_is_torchs_average_pooling(torch: Any) -> None:
    tile = tile_of(7, side=8)
    kept = reduced("pooling", tile, 16)
    image = torch.from_numpy(tile.features).reshape(8, 8, 12).permute(2, 0, 1)[None]
    expected = torch.nn.functional.avg_pool2d(image, 2)[0].permute(1, 2, 0).reshape(16, 12).numpy()
    assert np.allclose(kept.features, expected, rtol=1e-5, atol=1e-6)
    assert kept.rows.tolist() == [16 * (at // 4) + 2 * (at % 4) for at in range(16)]


def test_pooling_to_any_share_has_stretches_of_almost_one_length() -> None:
    kept = reduced("pooling", tile_of(8, side=8), 27)
    assert set(kept.sizes.tolist()) == {2, 3}


def test_dart_by_hand_takes_the_longest_and_then_what_is_least_like_each_pivot() -> None:
    features = [[0, 9], [9, 1], [1, 1], [8, 0], [0, 7], [6, 0], [-1, 0], [0, -1], [0.5, 0.5]]
    # longest by L1: rows 1 (10), 0 (9), 3 (8), 4 (7); of 6, two are left: pivot 1 takes row 6, pivot 0 row 7
    assert reduced("dart", bare(features, text=np.zeros((0, 2), np.float32)), 6).rows.tolist() == [0, 1, 3, 4, 6, 7]
    # a text pivot (the last of five turns) takes what is least like it once the image's had one each
    text = np.array([[-1, 0.1]], np.float32)
    assert reduced("dart", bare(features, text=text), 9).rows.tolist() == list(range(9))
    assert reduced("dart", bare(features), 3).rows.tolist() == [0, 1, 3]


def test_dart_asks_the_longest_texts() -> None:
    features = [[5, 0, 0], [5, 0, 0], [5, 0, 0], [5, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.9, 0.1], [0.1, 0.1, 0.9]]
    long, short = [0, 0, 9], [0, 1, 0]
    text = np.array([long, long, short, long, long], np.float32)
    # 4 pivots, 4 left of 8 is all; with 5 left over 8 turns, the fifth goes to the first text pivot
    by_text = reduced("dart", Tile(np.array(features, np.float32), text=text), 8)
    assert by_text.rows.tolist() == list(range(8))


def _dart_in_torch(torch: Any, features: Any, text: Any, quota: int) -> list[int]:
    """The authors' loop over pivots, with the quota shared out evenly."""
    of_image = torch.topk(features.abs().sum(-1), min(4, quota)).indices.tolist()
    of_text = torch.topk(text.abs().sum(-1), min(4, len(text))).indices.tolist() if len(text) else []
    pivots = [features[at] for at in of_image] + [text[at] for at in of_text]
    taken, left = list(of_image), quota - len(of_image)
    for at, pivot in enumerate(pivots):
        free = [row for row in range(len(features)) if row not in taken]
        share = left // len(pivots) + (1 if at < left % len(pivots) else 0)
        scores = -torch.nn.functional.cosine_similarity(pivot[None], features[free], dim=-1)
        taken += [free[at] for at in torch.topk(scores, share).indices.tolist()]
    return sorted(taken)


@pytest.mark.parametrize("num_text", [0, 2, 9])
@pytest.mark.parametrize("quota", [1, 3, 4, 5, 9, 17, 30, 35])
def test_dart_is_the_authors_loop(torch: Any, quota: int, num_text: int) -> None:
    for seed in range(5):
        tile = tile_of(seed)
        text = tile.text[:num_text]
        found = reduced("dart", Tile(tile.features, text=text), quota).rows.tolist()
        assert found == _dart_in_torch(torch, torch.from_numpy(tile.features), torch.from_numpy(text), quota)


def test_clusters_are_a_fixed_point_of_lloyd_where_the_rounds_sufficed() -> None:
    rng = np.random.default_rng(9)
    middles = rng.normal(size=(4, 8)) * 20
    points = np.concatenate([middle + rng.normal(size=(9, 8)) * 0.1 for middle in middles]).astype(np.float32)
    order = rng.permutation(36)
    kept = reduced("clustering", Tile(points[order], (6, 6), b"four heaps"), 4)
    assert sorted(kept.sizes.tolist()) == [9, 9, 9, 9]
    means = np.array([points[at * 9 : at * 9 + 9].mean(axis=0) for at in range(4)])
    firsts = [int(np.flatnonzero(order // 9 == heap)[0]) for heap in range(4)]
    expected = means[np.argsort(firsts)]
    assert np.allclose(kept.features, expected, atol=1e-4)
    assert kept.rows.tolist() == sorted(firsts)


def test_clustering_has_less_within_its_clusters_than_pooling() -> None:
    for seed in range(5):
        tile = tile_of(seed, side=8)
        clustered, pooled = reduced("clustering", tile, 16), reduced("pooling", tile, 16)
        between = [(kept.sizes * (kept.features**2).sum(axis=1)).sum() for kept in (clustered, pooled)]
        assert between[0] > between[1]


def test_merging_by_hand_joins_the_likeliest_pair_and_weighs_by_size() -> None:
    # even: rows 0, 2; odd: rows 1, 3. Row 2 points where row 3 does; row 0 is more like row 3 than like row 1
    features = [[1, 0.2], [0, 1], [4, -4], [2, -2]]
    once = reduced("merging", bare(features), 3)
    assert once.rows.tolist() == [0, 1, 3]
    assert once.sizes.tolist() == [1, 1, 2]
    assert once.features.tolist() == [[1, np.float32(0.2)], [0, 1], [3, -3]]
    twice = reduced("merging", bare(features), 2)
    assert twice.rows.tolist() == [1, 3]
    assert twice.sizes.tolist() == [1, 3]
    assert np.allclose(twice.features, [[0, 1], [7 / 3, -5.8 / 3]])


def _merged_in_torch(torch: Any, features: Any, quota: int) -> tuple[list[int], Any]:
    rows, sizes, values = list(range(len(features))), [1.0] * len(features), list(features)
    while len(rows) > quota:
        even, odd = list(range(0, len(rows), 2)), list(range(1, len(rows), 2))
        likeness = torch.nn.functional.cosine_similarity(
            torch.stack([values[at] for at in even])[:, None], torch.stack([values[at] for at in odd])[None], dim=-1
        )
        best, target = likeness.max(dim=1)
        going = torch.argsort(best, descending=True, stable=True)[: min(len(rows) - quota, len(rows) // 2)].tolist()
        gained: dict[int, list[int]] = {}
        for at in going:
            gained.setdefault(odd[int(target[at])], []).append(even[at])
        for to, parts in gained.items():
            total = sizes[to] + sum(sizes[at] for at in parts)
            values[to] = (values[to] * sizes[to] + sum(values[at] * sizes[at] for at in parts)) / total
            sizes[to] = total
        left = [at for at in range(len(rows)) if at not in {even[at] for at in going}]
        rows, sizes, values = [rows[at] for at in left], [sizes[at] for at in left], [values[at] for at in left]
    return rows, torch.stack(values)


@pytest.mark.parametrize("quota", [4, 9, 18, 30])
def test_merging_is_bipartite_matching_in_rounds(torch: Any, quota: int) -> None:
    for seed in range(4):
        tile = tile_of(seed)
        kept = reduced("merging", tile, quota)
        rows, values = _merged_in_torch(torch, torch.from_numpy(tile.features), quota)
        assert kept.rows.tolist() == rows
        assert np.allclose(kept.features, values.numpy(), rtol=1e-4, atol=1e-5)


def test_fastervlm_takes_what_receives_most() -> None:
    received = np.array([0.1, 0.3, 0.05, 0.3, 0.25], np.float32)
    tower = TowerView(received, np.zeros((5, 1), np.float32))
    assert reduced("fastervlm", Tile(np.eye(5, dtype=np.float32), tower=tower), 3).rows.tolist() == [1, 3, 4]


def _visionzip_in_torch(torch: Any, tile: Tile, dominant: int, contextual: int) -> dict[int, Any]:
    """The authors' masks, strides and sums, row -> feature."""
    features, keys = torch.from_numpy(tile.features), torch.from_numpy(tile.tower.keys)
    top = torch.topk(torch.from_numpy(tile.tower.received), dominant).indices
    found = {int(row): features[row] for row in top}
    mask = torch.ones(len(features), dtype=torch.bool)
    mask[top] = False
    left = torch.arange(len(features))[mask]
    metric = keys[left] / keys[left].norm(dim=-1, keepdim=True)
    targets = torch.arange(0, len(left), max(1, len(left) // contextual))[:contextual]
    others = torch.tensor([at for at in range(len(left)) if at not in targets.tolist()])
    assigned = (metric[others] @ metric[targets].T).argmax(dim=1)
    for at, target in enumerate(targets.tolist()):
        mine = others[assigned == at]
        added = features[left[mine]].mean(dim=0) if len(mine) else torch.zeros(features.shape[1])
        found[int(left[target])] = features[left[target]] + added
    return found


@pytest.mark.parametrize(("quota", "contextual"), [(7, 1), (16, 2), (20, 3), (32, 5)])
def test_visionzip_is_the_authors_code_target_plus_mean(torch: Any, quota: int, contextual: int) -> None:
    for seed in range(4):
        tile = tile_of(seed)
        kept = reduced("visionzip", tile, quota)
        expected = _visionzip_in_torch(torch, tile, quota - contextual, contextual)
        assert kept.rows.tolist() == sorted(expected)
        values = torch.stack([expected[row] for row in sorted(expected)]).numpy()
        assert np.allclose(kept.features, values, rtol=1e-4, atol=1e-5)
        assert kept.sizes.sum() == 36


def test_visionzip_of_few_tokens_has_dominant_ones_alone() -> None:
    tile = tile_of(1)
    assert np.array_equal(reduced("visionzip", tile, 6).rows, reduced("fastervlm", tile, 6).rows)


def test_textmonkey_drops_copies_before_anything_else() -> None:
    features = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0.6, 0.8, 0]]
    assert reduced("textmonkey", bare(features), 3).rows.tolist() == [1, 3, 4]
    assert reduced("textmonkey", bare(features), 1).rows.tolist() == [3]


def test_textmonkey_is_the_papers_loop() -> None:
    for seed in range(4):
        tile = tile_of(seed)
        importance = []
        for at, one in enumerate(tile.features):
            others = [other for row, other in enumerate(tile.features) if row != at]
            lengths = [np.linalg.norm(other) * np.linalg.norm(one) for other in others]
            importance.append(1 - max(one @ other / length for other, length in zip(others, lengths, strict=True)))
        expected = sorted(np.argsort(importance)[-10:].tolist())
        assert reduced("textmonkey", tile, 10).rows.tolist() == expected


def test_density_peaks_by_hand_are_the_middles_of_heaps_and_the_loner_is_one_of_its_own() -> None:
    # five about 0, five about 8, one at 20. Over 20.2, the largest distance: a middle of a heap is as dense as 1, and
    # 8 is 0.4 from 0; 20 is 0.57 from 8.5 and, by the squares of its neighbours, 0.76 dense: 0.43, behind 0 alone
    places = [8.5, 0.2, 20, 0, 8, 7.5, -0.2, 0.1, 8.2, 7.8, -0.1]
    tile = bare([[place] for place in places])
    two, three = reduced("dpc-knn", tile, 2), reduced("dpc-knn", tile, 3)
    assert two.rows.tolist() == [0, 2]  # each where its first one stood
    assert two.sizes.tolist() == [10, 1]
    assert three.rows.tolist() == [0, 1, 2]
    assert three.sizes.tolist() == [5, 5, 1]
    assert np.allclose(three.features[:, 0], [8, 0, 20], atol=1e-6)


def _density_peaks(features: np.ndarray, quota: int) -> list[list[int]]:
    """Return the clusters by section 3.1 of arXiv 2311.08046, token by token, in the order of their first tokens."""
    num, wide = len(features), features.astype(np.float64)
    distances = np.array([[np.linalg.norm(one - other) for other in wide] for one in wide])
    distances /= distances.max()  # ours: the paper writes plain ones, and the authors' code divides by the width's root
    # "local density": K nearest neighbours; K = 5 with the token itself, as the first scale of the code counts
    density = [np.exp(-(np.sort(row)[:5] ** 2).mean()) for row in distances]
    # "distance index": to the nearest token of higher density; for the highest, the largest there is
    gap = [
        min((distances[at, other] for other in range(num) if density[other] > density[at]), default=distances.max())
        for at in range(num)
    ]
    # cluster centres are those of the largest products, and the others go to the nearest centre
    products = [density[at] * gap[at] for at in range(num)]
    centres = sorted(range(num), key=lambda at: products[at], reverse=True)[:quota]
    clusters: dict[int, list[int]] = {}
    for at in range(num):
        home = at if at in centres else min(centres, key=lambda centre: distances[at, centre])
        clusters.setdefault(home, []).append(at)
    return list(clusters.values())


@pytest.mark.parametrize("scale", [0.02, 1, 40])
@pytest.mark.parametrize("quota", [1, 4, 9, 18, 30])
def test_density_peaks_are_the_papers_at_every_scale(quota: int, scale: float) -> None:
    """With plain distances every density at 40 is 0 in float64, and products would tell no token from another."""
    for seed in range(3):
        tile = tile_of(seed)
        features = tile.features * np.float32(scale)
        kept = reduced("dpc-knn", Tile(features, tile.grid, tile.digest), quota)
        clusters = _density_peaks(features, quota)
        assert kept.rows.tolist() == [members[0] for members in clusters]
        assert kept.sizes.tolist() == [len(members) for members in clusters]
        means = np.array([features[members].mean(axis=0) for members in clusters])
        assert np.allclose(kept.features, means, rtol=1e-4, atol=1e-5 * scale)
