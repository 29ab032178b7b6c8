import numpy as np
import pytest

from bundle.prompt import Prompt, Span
from runtime.filled_prompt import FilledPrompt
from serving.engine.changes import Keep, Move
from serving.engine.scheduler import Batch, Row
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

IMAGE = 5
RNG = np.random.default_rng(3)
IDS = np.array([7, IMAGE, IMAGE, IMAGE, 9, 8, IMAGE, IMAGE, 11, 12])
SPANS = (Span(1, 4, 0, 0), Span(6, 8, 0, 3))  # one image of five rows, in two places


def prompt_about(rows: np.ndarray) -> FilledPrompt:
    return FilledPrompt.of(Prompt(IDS, SPANS, np.arange(len(IDS)), len(IDS), 1), [rows])


def sequence(prompt: FilledPrompt, slot: int) -> Sequence:
    made = Sequence("r", prompt, SamplingParams(), (), [b"image"] * prompt.prompt.num_images)
    made.slot = slot
    return made


def prefilled(runner, one: Sequence, cuts: list[int]) -> np.ndarray:
    for start, end in zip([0, *cuts], [*cuts, one.num_prompt_tokens], strict=True):
        last = runner.run(Batch("prompt", (Row(one, start, end),)))
        one.advance(end - start)
    return last.rows().copy()


def stepped(runner, *several: Sequence, changes: tuple = ()) -> np.ndarray:
    """Return the logits after the newest token of each, which is not recorded as run."""
    rows = tuple(Row(one, len(one.ids) - 1, len(one.ids)) for one in several)
    runner.change(changes)
    return runner.run(Batch("step", rows)).rows().copy()


@pytest.fixture
def runner(tiny_model, settings):
    return tiny_model.runner(settings)


@pytest.fixture
def rows(tiny_model) -> np.ndarray:
    return RNG.normal(size=(5, tiny_model.config.hidden_size)).astype(np.float32)


def test_a_prompt_with_images_gives_the_same_logits_however_it_is_cut_into_chunks(runner, rows) -> None:
    whole = prefilled(runner, sequence(prompt_about(rows), 2), [])
    for cuts in ([2], [1, 4], [3, 7], list(range(1, 10))):
        # Matrix products of other heights round differently: float32 sums of 48 terms, 2 layers.
        np.testing.assert_allclose(prefilled(runner, sequence(prompt_about(rows), 2), cuts), whole, rtol=0, atol=1e-4)
    assert np.abs(whole).max() > 1


def test_image_features_change_the_answer_and_their_order_does(runner, rows) -> None:
    about = [prefilled(runner, sequence(prompt_about(each), 0), []) for each in (rows, rows[::-1], 0 * rows)]
    assert all(np.abs(about[0] - other).max() > 0.1 for other in about[1:])


def test_a_row_is_known_by_the_token_or_by_the_image_its_row_and_its_position(rows) -> None:
    keys = sequence(prompt_about(rows), 0).keys
    assert keys[:7] == [7, (b"image", 0, 1), (b"image", 1, 2), (b"image", 2, 3), 9, 8, (b"image", 3, 6)]


def test_a_sequence_whose_rows_were_moved_goes_on_as_it_would_have(runner, rows) -> None:
    here, there = (sequence(prompt_about(rows), slot) for slot in (0, 3))
    for one in (here, there):
        prefilled(runner, one, [])
        one.append(13)
    expected = stepped(runner, here)
    there.slot = 1
    found = stepped(runner, there, changes=(Move(3, 1, tuple(there.rows)),))
    np.testing.assert_array_equal(found, expected)


def test_rows_that_are_dropped_are_gone_and_the_kept_ones_stay_as_they_are(runner, rows) -> None:
    one = sequence(prompt_about(rows), 0)
    prefilled(runner, one, [])
    one.append(13)
    whole = stepped(runner, one)
    # All rows, in another order: attention does not care where a row lies.
    shuffled = stepped(runner, one, changes=(Keep(0, 0, np.array([3, 1, 0, 2, 9, 8, 7, 6, 5, 4])),))
    np.testing.assert_allclose(shuffled, whole, rtol=0, atol=1e-5)
    one.rows = [4]
    fewer = stepped(runner, one, changes=(Keep(0, 0, np.array([0, 1, 2, 9])),))
    assert np.abs(fewer - whole).max() > 1e-2


def test_rows_that_are_not_side_by_side_are_refused(runner, rows) -> None:
    apart = [sequence(prompt_about(rows), slot) for slot in (0, 2)]
    with pytest.raises(ValueError, match=r"slots \[0, 2\], which are not neighbours"):
        stepped(runner, *apart)
