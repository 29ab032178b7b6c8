from __future__ import annotations

import pytest

from loadtests.scaling.steps import Step, parse_steps, users_at


def test_steps_are_users_and_seconds_in_order() -> None:
    assert parse_steps("1x20, 8x90") == (Step(1, 20), Step(8, 90))


@pytest.mark.parametrize("text", ["", "8", "8x", "x9", "0x9", "8x0", "8x9,", "-1x9", "1001x9", "8x3601", "8.5x9"])
def test_what_is_no_step_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="step "):
        parse_steps(text)


def test_each_step_holds_its_users_for_its_time_and_the_run_ends_behind_the_last() -> None:
    steps = parse_steps("1x2,8x3")
    assert [users_at(steps, time_s) for time_s in (0, 1.9, 2, 4.9, 5, 99)] == [1, 1, 8, 8, None, None]
