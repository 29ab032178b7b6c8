import tracemalloc
from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.models.feature_cache import ENTRY_BYTES, FeatureCache

NUMBERS = {key: 10 * (key + 1) for key in range(5)}
SIZES = {key: 4 * numbers + ENTRY_BYTES for key, numbers in NUMBERS.items()}
LIMIT = 2 * ENTRY_BYTES + 190


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60))
def test_the_least_recently_used_goes_first_and_bytes_stay_within_the_limit(actions) -> None:
    cache, model = FeatureCache(LIMIT), OrderedDict()
    for is_put, key in actions:
        if is_put:
            cache.put(bytes([key]), np.full(NUMBERS[key], key, np.float32))
            if key not in model and SIZES[key] <= LIMIT:
                while sum(SIZES[k] for k in model) + SIZES[key] > LIMIT:
                    model.popitem(last=False)
                model[key] = True
        else:
            found = cache.try_get(bytes([key]))
            assert (found is not None) == (key in model)
            if found is not None:
                model.move_to_end(key)
                np.testing.assert_array_equal(found, np.full(NUMBERS[key], key, np.float32))
        assert cache.num_bytes == sum(SIZES[k] for k in model) <= LIMIT


def test_kept_features_cannot_be_changed_by_a_reader() -> None:
    cache = FeatureCache(1000)
    cache.put(b"k", np.zeros(3))
    found = cache.try_get(b"k")
    assert found is not None
    assert not found.flags.writeable


def test_models_find_each_others_features_and_count_their_own() -> None:
    cache = FeatureCache(10 * ENTRY_BYTES)
    first, second = cache.share(), cache.share()
    first.put(b"k", np.ones(3, np.float32))
    np.testing.assert_array_equal(second.try_get(b"k"), np.ones(3))
    second.put(b"k", np.ones(3, np.float32))  # it is there
    second.put(b"l", np.ones(4, np.float32))
    assert first.try_get(b"m") is None
    assert (first.num_hits, first.num_misses, second.num_hits, second.num_misses) == (0, 1, 1, 0)
    assert (first.num_bytes, second.num_bytes) == (ENTRY_BYTES + 12, ENTRY_BYTES + 16)
    assert cache.num_bytes == first.num_bytes + second.num_bytes


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60))
def test_the_shares_sum_up_to_the_cache_whatever_is_dropped(actions) -> None:
    cache = FeatureCache(LIMIT)
    shares = cache.share(), cache.share()
    for is_first, key in actions:
        shares[is_first].put(bytes([key]), np.zeros(NUMBERS[key], np.float32))
        assert cache.num_bytes == sum(share.num_bytes for share in shares) <= LIMIT


def test_a_cleared_cache_is_empty_and_goes_on() -> None:
    cache = FeatureCache(10 * ENTRY_BYTES)
    share = cache.share()
    share.put(b"k", np.ones(3))
    cache.clear()
    assert share.try_get(b"k") is None
    assert (cache.num_bytes, share.num_bytes, share.num_misses) == (0, 0, 1)
    share.put(b"k", np.ones(3))
    assert share.try_get(b"k") is not None


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = FeatureCache(0)
    cache.put(b"k", np.zeros(3))
    assert cache.try_get(b"k") is None


def test_many_small_entries_take_no_more_memory_than_the_cache_says() -> None:
    cache = FeatureCache(4 << 20)
    tracemalloc.start()
    try:
        for number in range(10_000):
            cache.put(number.to_bytes(32, "big"), np.zeros((1, 128), np.float32))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.num_bytes <= 4 << 20
    assert 0.5 * cache.num_bytes < held_bytes < cache.num_bytes
