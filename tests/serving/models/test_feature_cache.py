from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.models.feature_cache import FeatureCache

SIZES = {key: 40 * (key + 1) for key in range(5)}  # bytes: 40 ... 200


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60))
def test_the_least_recently_used_goes_first_and_bytes_stay_within_the_limit(actions) -> None:
    cache, model = FeatureCache(190), OrderedDict()
    for is_put, key in actions:
        if is_put:
            cache.put(bytes([key]), np.full(SIZES[key] // 4, key, np.float32))
            if key not in model and SIZES[key] <= 190:
                while sum(SIZES[k] for k in model) + SIZES[key] > 190:
                    model.popitem(last=False)
                model[key] = True
        else:
            found = cache.try_get(bytes([key]))
            assert (found is not None) == (key in model)
            if found is not None:
                model.move_to_end(key)
                np.testing.assert_array_equal(found, np.full(SIZES[key] // 4, key, np.float32))
        assert cache.num_bytes == sum(SIZES[k] for k in model) <= 190


def test_kept_features_cannot_be_changed_by_a_reader() -> None:
    cache = FeatureCache(100)
    cache.put(b"k", np.zeros(3))
    found = cache.try_get(b"k")
    assert found is not None
    assert not found.flags.writeable


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = FeatureCache(0)
    cache.put(b"k", np.zeros(3))
    assert cache.try_get(b"k") is None
