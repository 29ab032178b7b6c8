from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import QuantizationError
from bundle.image_tokens import ReducedImage, ShownImage
from bundle.prompt import Placeholder, Turn
from bundle.text import Tokenizer
from quant.quality.measures import kl_divergences
from quant.quality.reductions import measure_reductions
from quant.visual_tokens.reduction import Reduction
from runtime.decoder import TokenGraphs
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings


@dataclass(frozen=True)
class Asked:
    """A question about two images; `reply` is what counts as right."""

    images: tuple[Image.Image, ...]
    answer: str
    reply: str
    task: str = "any"

    def messages(self) -> list[dict[str, object]]:
        shown = [{"type": "image"} for _ in self.images]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": "Which is larger?"}]}]

    def is_right(self, reply: str) -> bool:
        return reply == self.reply


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8).astype(np.uint8))


@pytest.fixture(scope="module")
def runner(smolvlm_bundle: Path) -> VisionLanguageRunner:
    return VisionLanguageRunner(open_bundle(smolvlm_bundle))


@pytest.fixture(scope="module")
def questions(runner: VisionLanguageRunner) -> list[Asked]:
    asked = [Asked((noise(seed), noise(seed + 1)), "the first", "", str(seed // 2 % 2)) for seed in range(0, 8, 2)]
    turns = [Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "Which is larger?"))]
    room = len(runner.answer_ids("the first")) + 8
    own = [
        runner.text_of(runner.reply_ids(runner.prefill(runner.prompt(turns, each.images), room), room))
        for each in asked
    ]
    return [Asked(each.images, each.answer, reply, each.task) for each, reply in zip(asked, own, strict=True)]


def test_all_tokens_lose_nothing_and_fewer_are_told_for_what_they_are(runner, questions) -> None:
    whole, half = Reduction("dart", 1), Reduction("uniform", 0.5)
    found = measure_reductions(runner, questions, [whole, half], lambda line: None)
    assert list(found) == [whole, half]
    assert found[whole].teacher_forced.kl_mean == 0
    assert found[whole].teacher_forced.top1_agreement == 1
    assert (found[whole].tasks["all"].fp32, found[whole].tasks["all"].quantized) == (1, 1)
    assert found[whole].replies.identical == 1
    assert set(found[half].tasks) == {"0", "1", "all"}
    turns, answer = [Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "Which is larger?"))], "the first"
    divergences = []
    for question in questions:
        seen, ids = runner.see(question.images), runner.answer_ids(answer)
        logits = [runner.answer_logits(runner.prompt_about(turns, seen, each), ids) for each in (None, half)]
        divergences.append(kl_divergences(*logits))
    assert found[half].teacher_forced.kl_mean == pytest.approx(np.concatenate(divergences).mean(), rel=1e-9)
    assert found[half].teacher_forced.kl_mean > 1e-6


def test_a_reduced_prompt_is_shorter_and_its_answers_go_on_behind_the_whole_one(runner, questions) -> None:
    turns = [Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "Which is larger?"))]
    seen = runner.see(questions[0].images)
    whole, half = runner.prompt_about(turns, seen), runner.prompt_about(turns, seen, Reduction("dart", 0.5))
    assert half.prompt.num_image_tokens * 2 == whole.prompt.num_image_tokens
    assert half.prompt.next_position == whole.prompt.next_position == whole.num_tokens
    text = set(range(whole.num_tokens)) - {at for span in whole.prompt.spans for at in range(span.start, span.end)}
    assert text <= set(half.prompt.positions.tolist())


@dataclass
class Listening:
    """A reducer that keeps the first token, and notes which texts it was given."""

    texts: list[np.ndarray]
    is_whole: bool = False
    needs_tower: bool = False
    needs_text: bool = True

    def seen_side(self, num_tokens: int) -> None:
        return None

    def apply(self, image: ShownImage) -> ReducedImage:
        self.texts.append(image.text)
        return ReducedImage(image.features[0, :1], np.array([0]), image.digest)


def test_an_image_comes_with_the_text_of_its_own_message(runner, questions, smolvlm_bundle) -> None:
    seen, listening = runner.see(questions[0].images), Listening([])
    turns = [
        Turn("user", (Placeholder.IMAGE, "Which is", " larger?")),
        Turn("assistant", ("None",)),
        Turn("user", (Placeholder.IMAGE,)),
    ]
    runner.prompt_about(turns, seen, listening)
    tokenizer = Tokenizer.from_file(smolvlm_bundle / "tokenizer.json")
    ids = [*tokenizer.encode_plain("Which is"), *tokenizer.encode_plain(" larger?")]
    table = TokenGraphs(open_bundle(smolvlm_bundle), RuntimeSettings())
    first, second = listening.texts
    np.testing.assert_array_equal(first, table.embed(np.array([ids]))[0])
    assert second.shape == (0, first.shape[1])


def test_a_method_whose_outputs_the_bundle_lacks_is_refused_by_name(runner, questions, monkeypatch) -> None:
    monkeypatch.setattr(VisionLanguageRunner, "gives_tower", False)
    with pytest.raises(QuantizationError, match="visionzip: the bundle's vision encoder"):
        measure_reductions(runner, questions, [Reduction("visionzip", 0.5)], lambda line: None)
