import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.manifest import DecoderDims
from runtime.cache_shape import cache_shape
from runtime.settings import EngineSettings
from serving.engine.slots import SlotPool

DIMS = DecoderDims(
    num_layers=30, hidden_size=576, vocab_size=49280, num_heads=9, num_kv_heads=3, head_size=64, max_positions=8192
)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_slot_has_one_owner_and_the_lowest_free_one_is_taken(actions: list[int]) -> None:
    pool, owned = SlotPool(3), set()
    for action in actions:
        if action == 3:
            slot = pool.try_take()
            expected = min(set(range(3)) - owned, default=None)
            assert slot == expected
            owned |= {slot} - {None}
        elif action in owned:
            pool.give_back(action)
            owned.remove(action)
        else:
            with pytest.raises(ValueError, match="has no owner"):
                pool.give_back(action)
        assert pool.num_free == 3 - len(owned)


def test_the_cache_of_smolvlm_256m_weighs_what_its_sizes_say() -> None:
    shape = cache_shape(DIMS, EngineSettings(max_sequences=2, context_tokens=1000))
    assert shape.total_bytes == 2 * 1000 * 30 * 2 * 3 * 64 * 4
    assert str(shape) == "2 slots x 1000 tokens x 46080 B/token = 88 MiB of cache"


@pytest.mark.parametrize(("asked", "model_limit", "given"), [(None, 8192, 4096), (None, 300, 300), (9000, 8192, 8192)])
def test_a_slot_is_never_longer_than_the_model_allows(asked, model_limit, given) -> None:
    dims = DIMS.model_copy(update={"max_positions": model_limit})
    assert cache_shape(dims, EngineSettings(context_tokens=asked)).capacity_tokens == given
