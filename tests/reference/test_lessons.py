"""Lessons are training data, made once: kept ones are read again, and hold what the shipped model answers."""

from __future__ import annotations

import itertools
import pathlib
import random

import pytest

from reference.seeds import CALIBRATION_SEEDS, TRAINING_SEEDS


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, transformers, START, FIRST_SEED, Lesson, Lessons, load_vlm, distillation_loss, Conversations
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    transformers = pytest.importorskip("transformers", reason="training needs the [train] extra")

    from reference.fine_tuning import START
    from reference.lessons import FIRST_SEED, Lesson, Lessons, load_vlm
    from reference.train_ternary import distillation_loss
    from reference.train_vlm import Conversations


@pytest.fixture(scope="module")
def conversations() -> Conversations:
    tokens = transformers.PreTrainedTokenizerFast.from_pretrained(START)
    return Conversations(tokens.backend_tokenizer, 2, 2, FIRST_SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("lessons")


@pytest.fixture(scope="module")
def made(conversations: Conversations, folder: pathlib.Path) -> list[Lesson]:
    return list(itertools.islice(Lessons(START, conversations, folder, 0), 3))


def test_kept_lessons_are_read_again_and_not_made_again(made: list[Lesson], folder: pathlib.Path) -> None:
    again = list(itertools.islice(Lessons(START, None, folder, 1), 2))
    for first, second in zip(made[1:], again, strict=True):
        assert torch.equal(first.features, second.features)
        assert (first.batch.ids == second.batch.ids).all()
    assert made[0].batch.ids.tolist() != made[1].batch.ids.tolist()


def test_numbered_batches_are_those_of_the_stream(conversations: Conversations) -> None:
    stream = iter(conversations)
    for number in range(2):
        pixels, _, batch = next(stream)
        own_pixels, _, own = conversations.numbered(number)
        assert torch.equal(pixels, own_pixels)
        assert (batch.ids == own.ids).all()


def test_lessons_hold_the_shipped_models_answers(made: list[Lesson]) -> None:
    with torch.inference_mode():
        logits = made[0].student_logits(load_vlm(START).to(torch.bfloat16))
    torch.testing.assert_close(logits.half(), made[0].logits)
    rights = [float((lesson.logits.argmax(-1).numpy() == lesson.batch.targets).mean()) for lesson in made]
    assert sum(rights) / 3 > 0.8


def test_lessons_come_from_training_seeds_of_their_own(
    conversations: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    class Noting(random.Random):
        def __init__(self, seed: int) -> None:
            drawn.append(seed)
            super().__init__(seed)

    monkeypatch.setattr(random, "Random", Noting)
    conversations.numbered(5000)  # more than any run has taken
    assert len(drawn) >= 2
    for seed in drawn:
        assert seed in TRAINING_SEEDS
        assert FIRST_SEED <= seed < CALIBRATION_SEEDS.start


def test_distillation_adds_the_divergence_from_the_shipped_models_answers(made: list[Lesson]) -> None:
    lesson = made[0]
    teacher = lesson.logits.float()
    same, facts = distillation_loss(teacher, lesson)
    assert float(facts["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(same) == pytest.approx(float(facts["loss"]), abs=1e-6)
    student = teacher.roll(1, dims=1) / 2
    loss, facts = distillation_loss(student, lesson)
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (teacher, student))
    weights = torch.from_numpy(lesson.batch.weights)
    wanted = float((torch.distributions.kl_divergence(p, q) * weights).sum() / weights.sum())
    assert float(facts["kl"]) == pytest.approx(wanted, rel=1e-4)
    assert float(loss) == pytest.approx(float(facts["loss"]) + wanted, rel=1e-4)
