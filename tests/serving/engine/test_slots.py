import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.filled_prompt import FilledPrompt
from serving.engine.changes import Move
from serving.engine.sequence import Sequence
from serving.engine.slots import Slots
from serving.protocol import SamplingParams

NUM_SLOTS = 4
ACTIONS = st.lists(st.tuples(st.sampled_from(["seat", "settle", "free"]), st.integers(0, NUM_SLOTS - 1)), max_size=60)


def sequence(num_rows: int = 0) -> Sequence:
    made = Sequence("r", FilledPrompt.of_ids(np.arange(1 + num_rows)), SamplingParams(), ())
    made.advance(num_rows)
    return made


@given(ACTIONS)
def test_decoding_sequences_sit_side_by_side_and_their_rows_follow_them(actions: list[tuple[str, int]]) -> None:
    slots, memory, live = Slots(NUM_SLOTS), dict[int, Sequence](), list[Sequence]()
    for kind, number in actions:
        if kind == "seat" and slots.has_room:
            live.append(sequence(num_rows=number))
            slots.seat(live[-1])
            memory[live[-1].slot] = live[-1]  # its prompt is written there
        elif kind == "settle" and slots.filling is not None:
            slots.settle()
        elif kind == "free" and live:
            gone = live.pop(number % len(live))
            assert slots.free(gone)
            assert not slots.free(gone)
            assert gone.slot is None
        for move in slots.take_changes():
            assert move.rows == tuple(memory[move.source].rows)
            memory[move.target] = memory[move.source]
        seated = [*slots.decoding, *([slots.filling] if slots.filling else [])]
        assert set(seated) == set(live)
        assert [each.slot for each in slots.decoding] == list(range(len(slots.decoding)))
        assert len({each.slot for each in seated}) == len(seated) <= NUM_SLOTS
        assert all(memory[each.slot] is each for each in seated)


def test_where_one_in_the_middle_leaves_only_the_last_moves() -> None:
    slots, several = Slots(NUM_SLOTS), [sequence(3), sequence(4), sequence(5)]
    for each in several:
        rows = each.rows
        slots.seat(each)
        each.rows = rows
        slots.settle()
    slots.free(several[0])
    assert slots.decoding == (several[2], several[1])
    assert slots.take_changes() == (Move(2, 0, (5,)),)
    assert slots.take_changes() == ()


def test_nobody_is_seated_where_there_is_no_room() -> None:
    slots = Slots(1)
    slots.seat(sequence())
    with pytest.raises(ValueError, match="no slot for r"):
        slots.seat(sequence())
    with pytest.raises(ValueError, match="no prompt is running"):
        Slots(1).settle()
