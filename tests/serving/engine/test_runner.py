import numpy as np
import pytest

from serving.engine.runner import merged
from serving.engine.scheduler import Prefill
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

IMAGE = 5
RNG = np.random.default_rng(3)


def test_image_rows_stand_where_the_placeholders_were_and_nothing_else_changes() -> None:
    embeds = RNG.normal(size=(6, 4)).astype(np.float32)
    kept = embeds.copy()
    rows = RNG.normal(size=(2, 4)).astype(np.float32)
    result = merged(embeds, rows, np.array([False, True, False, False, True, False]))
    np.testing.assert_array_equal(result[[1, 4]], rows)
    np.testing.assert_array_equal(result[[0, 2, 3, 5]], kept[[0, 2, 3, 5]])
    np.testing.assert_array_equal(embeds, kept)


def test_another_number_of_rows_than_placeholders_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of image features for 1 placeholders"):
        merged(np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32), np.array([True, False]))


def test_a_prompt_with_images_gives_the_same_logits_however_it_is_cut_into_chunks(tiny_model, settings) -> None:
    runner = tiny_model.runner(settings)
    ids = np.array([7, IMAGE, IMAGE, IMAGE, 9, 8, IMAGE, IMAGE, 11, 12])
    rows = RNG.normal(size=(5, tiny_model.dims.hidden_size)).astype(np.float32)

    def logits(cuts: list[int]) -> np.ndarray:
        sequence = Sequence("r", ids, SamplingParams(), (), rows)
        sequence.slot = 2
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            last = runner.prefill(Prefill(sequence, start, end))
        return last

    whole = logits([])
    for cuts in ([2], [1, 4], [3, 7], list(range(1, 10))):
        # Matrix products of other heights round differently: float32 sums of 48 terms, 2 layers.
        np.testing.assert_allclose(logits(cuts), whole, rtol=0, atol=1e-4)
    assert np.abs(whole).max() > 1


def test_image_features_change_the_answer(tiny_model, settings) -> None:
    runner = tiny_model.runner(settings)
    ids = np.array([7, IMAGE, 9])

    def logits(rows: np.ndarray | None) -> np.ndarray:
        sequence = Sequence("r", ids, SamplingParams(), (), rows)
        sequence.slot = 0
        return runner.prefill(Prefill(sequence, 0, 3)).copy()

    row = RNG.normal(size=(1, tiny_model.dims.hidden_size)).astype(np.float32)
    assert np.abs(logits(row) - logits(None)).max() > 0.1
