"""The shipped tower and connector show the real decoder what is drawn; words alone it answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.prompt import Placeholder, Turn
from commands.real import VISION
from reference.real.held_out import Question, held_out
from runtime.one_request import VisionLanguageRunner

pytestmark = [pytest.mark.real, pytest.mark.slow]

NUM_QUESTIONS = 20
MAX_NEW_TOKENS = 32
MAX_BYTES = 8 * 10**6


@pytest.fixture(scope="module", autouse=True)
def _fonts_and_photographs() -> None:
    """Both come with packages of the [train] extra; pictures are drawn with them."""
    for package in ("matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package, reason=f"{package} comes with the extra train")


@pytest.fixture(scope="module")
def runner(bundle: Path) -> VisionLanguageRunner:
    return VisionLanguageRunner(open_bundle(bundle, allow_ungated=True))


def reply(runner: VisionLanguageRunner, text: str, images: tuple[Image.Image, ...] = (), *, last: bool = False) -> str:
    """Return the greedy reply to a text about images, which stand before it or behind it."""
    shown = (Placeholder.IMAGE,) * len(images)
    turn = Turn("user", (text, *shown) if last else (*shown, text))
    prefilled = runner.prefill(runner.prompt([turn], images), MAX_NEW_TOKENS)
    return runner.text_of(runner.reply_ids(prefilled, MAX_NEW_TOKENS))


def is_answered(runner: VisionLanguageRunner, question: Question) -> bool:
    said = reply(runner, question.enquiry.question, question.images, last=question.is_text_first)
    return question.is_right(said)


# Floors, not the accuracies themselves (reference/checkpoints/README.md): by guessing a colour is right once in ten, a
# shape once in eight, a number once in four or five.
@pytest.mark.parametrize(("kind", "floor"), [("colour", 14), ("shape", 8), ("count", 8)])
def test_held_out_drawings_are_read(runner: VisionLanguageRunner, kind: str, floor: int) -> None:
    assert sum(is_answered(runner, question) for question in held_out(kind, NUM_QUESTIONS)) >= floor


def test_another_picture_gets_another_description(runner: VisionLanguageRunner) -> None:
    drawn = held_out("describe", 6)
    said = [reply(runner, "Describe this picture.", question.images) for question in drawn]
    assert len(set(said)) == len(drawn)
    assert all(each.startswith("The picture shows") for each in said)


def test_a_plain_question_is_answered_as_by_the_decoder_alone(runner: VisionLanguageRunner) -> None:
    assert "Paris" in reply(runner, "What is the capital of France?")


def test_what_is_shipped_is_small() -> None:
    assert (VISION / "model.safetensors").stat().st_size < MAX_BYTES
