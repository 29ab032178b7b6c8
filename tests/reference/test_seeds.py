"""Held-out data never meets training data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from reference.drawing import digit_images
from reference.real.held_out import SMALL_KINDS
from reference.scenes import TASKS, held_out
from reference.seeds import CALIBRATION_SEEDS, HELD_OUT_SEEDS, TRAINING_SEEDS, calibration_seed, held_out_seed

NAMES = (*TASKS, "label shape", "label colour", *(f"real {kind}" for kind in SMALL_KINDS))


def test_held_out_seeds_never_meet_training_seeds() -> None:
    assert set(TRAINING_SEEDS[:1]) == {0}
    assert TRAINING_SEEDS.stop <= HELD_OUT_SEEDS.start
    corners = [(seed, index) for seed in (0, 255) for index in (0, (1 << 20) - 1)]
    for name in NAMES:
        for seed, index in corners:
            assert held_out_seed(name, seed, index) in HELD_OUT_SEEDS
            assert held_out_seed(name, seed, index) not in TRAINING_SEEDS


def test_no_two_held_out_sets_share_a_seed() -> None:
    firsts = {held_out_seed(name, seed, 0) for name in NAMES for seed in range(256)}
    assert len(firsts) == len(NAMES) * 256
    assert min(np.diff(sorted(firsts))) >= 1 << 20


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (256, 0), (0, -1), (0, 1 << 20)])
def test_seed_outside_its_range_is_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match=r"must be below"):
        held_out_seed("colour", seed, index)


def test_test_digits_are_never_among_training_digits() -> None:
    train, _ = digit_images("train")
    test, labels = digit_images("test")
    seen = {image.tobytes() for image in train}
    assert len(test) == 450
    assert set(labels) == set(range(10))
    assert not any(image.tobytes() in seen for image in test)


def test_held_out_digits_come_from_the_test_split() -> None:
    import reference.scenes as scenes

    for index in range(50):
        drawn = scenes.scenes_for("digit", random.Random(held_out_seed("digit", 0, index)), "test")
        assert {s.digit_split for s in drawn} == {"test"}


def test_same_seed_gives_the_same_examples() -> None:
    for task in TASKS:
        first, second = held_out(task, 5, 3), held_out(task, 5, 3)
        assert [e.turns for e in first] == [e.turns for e in second]
        assert [i.tobytes() for e in first for i in e.images] == [i.tobytes() for e in second for i in e.images]


def test_calibration_seeds_are_training_seeds_and_never_held_out_ones() -> None:
    assert CALIBRATION_SEEDS.start in TRAINING_SEEDS
    assert CALIBRATION_SEEDS[-1] in TRAINING_SEEDS
    firsts = {calibration_seed(name, 0) for name in NAMES}
    assert min(np.diff(sorted(firsts))) >= 1 << 20
    for seed in (*firsts, *(calibration_seed(name, (1 << 20) - 1) for name in NAMES)):
        assert seed in CALIBRATION_SEEDS
        assert seed not in HELD_OUT_SEEDS
    with pytest.raises(ValueError, match="index 1048576 must be below 1048576"):
        calibration_seed("colour", 1 << 20)


@pytest.mark.parametrize("name", ["vlm", "clip", "vlm-wide"])
def test_calibration_samples_are_no_held_out_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import reference.captions as captions
    import reference.real.held_out as wide
    import reference.scenes as scenes
    from reference.held_out import calibration_of, evaluation_of

    def contents(evaluation: object) -> set[bytes]:
        questions = [
            b"".join(i.tobytes() for i in q.images) or str(q.messages()).encode() for q in evaluation.questions
        ]
        labelled = [s for task in evaluation.labelled.values() for s in task.samples]
        return {*questions, *(s.image.tobytes() for s in (*evaluation.captions, *labelled))}

    held = contents(evaluation_of(name, 4))
    drawn: list[int] = []
    for module in (captions, scenes, wide):
        monkeypatch.setattr(module, "calibration_seed", lambda *a: drawn.append(calibration_seed(*a)) or drawn[-1])
        monkeypatch.delattr(module, "held_out_seed")
    calibration = calibration_of(name, 4)
    assert len(calibration.questions) == 4 * {"vlm": len(TASKS), "vlm-wide": len(SMALL_KINDS), "clip": 0}[name]
    assert len(calibration.captions) == (4 if name == "clip" else 0)
    assert not contents(calibration) & held
    assert drawn
    assert all(seed in TRAINING_SEEDS for seed in drawn)


def test_calibration_digits_come_from_the_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import reference.scenes as scenes

    splits: set[str] = set()
    whole = scenes.scenes_for
    monkeypatch.setattr(scenes, "scenes_for", lambda task, rng, split: splits.add(split) or whole(task, rng, split))
    scenes.calibration("digit", 2)
    assert splits == {"train"}
