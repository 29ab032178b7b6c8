"""Task vectors through a whole model: made of demonstrations, and given to the requests that name one alone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ParameterError
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from runtime.cache_shape import cache_shape
from runtime.chunks import GRID_TOKENS
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import HeadValues, TokenRun
from runtime.one_request import VisionLanguageRunner
from runtime.task_search import behind_others
from runtime.task_vector import HeadShape, TaskVector
from serving.models.generative import GenerativeModel
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignores_eos=True)
SHOWN = (("What is grass?", "green"), ("What is snow?", "white"), ("What is blood?", "red"))


@pytest.fixture(scope="module")
def opened_bundle(checkpoint_of, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("opened") / "bundle"
    export_checkpoint(checkpoint_of("smolvlm"), folder, name="tiny-smolvlm", task_vectors=True)
    return folder


@pytest.fixture
def make_model(pool):
    made: list[GenerativeModel] = []

    def make(bundle: Path) -> GenerativeModel:
        made.append(GenerativeModel(open_bundle(bundle), SETTINGS, pool))
        made[-1].start()
        return made[-1]

    yield make
    for model in made:
        model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def message(role: str, *parts: str | bytes) -> Message:
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


def request(*messages: Message, **fields) -> GenerateRequest:
    return GenerateRequest("r", "tiny-smolvlm", messages, GREEDY, **fields)


def shown(image: bytes) -> list[Message]:
    pairs = [(message("user", image, ask), message("assistant", answer)) for ask, answer in SHOWN]
    return [each for pair in pairs for each in pair]


def random_vector(bundle: Path, seed: int = 1) -> TaskVector:
    from runtime.fused_prefix import identity_of

    manifest = open_bundle(bundle).manifest
    shape, rng = HeadShape.of(manifest), np.random.default_rng(seed)
    values = 3 * rng.standard_normal((shape.num_layers, shape.width)).astype(np.float32)
    mask = rng.random(shape.num_layers * shape.num_heads) < 0.5
    return TaskVector(identity_of(manifest), HeadValues(values, mask))


def greedy_with(bundle: Path, vector: TaskVector, question: str, num_tokens: int) -> list[int]:
    """Return what a plain loop says, in which every token from the prompt's last one on has heads replaced."""
    opened = open_bundle(bundle)
    prompt = VisionLanguageRunner(opened, SETTINGS).prompt([Turn("user", (question,))], [])
    end = prompt.num_tokens
    decoder = Decoder(TokenGraphs(opened, SETTINGS), cache_shape(opened.manifest, 1, end + num_tokens))
    first = dataclasses.replace(prompt.run(0, end, [0], [end - 1]), heads=vector.heads, first_replaced=end - 1)
    logits, said = decoder.run("prompt", 0, [first])[0, 0], list[int]()
    for at in range(end, end + num_tokens):
        said.append(int(np.argmax(logits)))
        step = TokenRun(np.array(said[-1:]), np.array([at]), [at], [0], heads=vector.heads)
        logits = decoder.run("step", 0, [step])[0, 0]
    return said


def ends_on_the_grid(bundle: Path) -> str:
    runner = VisionLanguageRunner(open_bundle(bundle), SETTINGS)
    questions = (
        f"What is {'really ' * number}so blue{'?' * more}" for number in range(4) for more in range(GRID_TOKENS)
    )
    return next(each for each in questions if not runner.prompt([Turn("user", (each,))], []).num_tokens % GRID_TOKENS)


def test_a_request_is_answered_with_its_heads_replaced_and_others_beside_it_are_not(
    make_model, answer, opened_bundle
) -> None:
    model, vector = make_model(opened_bundle), random_vector(opened_bundle)
    question = ends_on_the_grid(opened_bundle)  # so that all rows of its prompt would be found, had they been left
    own = message("user", question)
    expected = tuple(greedy_with(opened_bundle, vector, question, GREEDY.max_tokens))

    async def main() -> None:
        plain = await answer(model, request(own))
        with_vector = request(own, behind=vector.to_bytes())
        found = await asyncio.gather(answer(model, with_vector), answer(model, request(own)))
        assert found[0].token_ids == expected != plain.token_ids
        assert found[1].token_ids == plain.token_ids
        again = await answer(model, with_vector)
        assert again.token_ids == expected
        assert again.finished.usage.prompt_tokens == plain.finished.usage.prompt_tokens
        longer = request(own, message("assistant", "blue"), message("user", "And why? " * 8))
        model.clear_prefixes()
        expected_longer = await answer(model, longer)
        model.clear_prefixes()
        await answer(model, with_vector)
        after = await answer(model, longer)
        assert after.token_ids == expected_longer.token_ids
        assert after.finished.usage.cached_tokens == plain.finished.usage.prompt_tokens - GRID_TOKENS

    run(main)


def test_demonstrations_become_the_heads_that_answer_them_best(make_model, answer, opened_bundle, image_bytes) -> None:
    model, image = make_model(opened_bundle), image_bytes(3)
    manifest = open_bundle(opened_bundle).manifest

    async def main() -> None:
        made = (await answer(model, request(*shown(image), learns=True))).finished
        again = (await answer(model, request(*shown(image), learns=True))).finished
        assert made.fused == again.fused is not None
        vector = TaskVector.from_bytes(made.fused, manifest)
        assert made.replaced_heads == vector.num_heads > 0
        assert made.usage.completion_tokens == 0
        trial = Trial(opened_bundle, image)
        np.testing.assert_allclose(vector.heads.values, trial.mean_heads(), atol=1e-4)
        assert trial.loss(vector.heads) < trial.loss(None)
        singles = np.eye(len(vector.heads.mask), dtype=np.bool_)
        best = min(trial.loss(HeadValues(vector.heads.values, mask)) for mask in singles)
        assert trial.loss(vector.heads) <= best + 1e-6

    run(main)


class Trial:
    """The same demonstrations, each prompt run whole, and the loss of its answer in float64."""

    def __init__(self, bundle: Path, image: bytes) -> None:
        self._bundle = open_bundle(bundle)
        self._runner = VisionLanguageRunner(self._bundle, SETTINGS)
        self._picture = Image.open(BytesIO(image)).convert("RGB")
        self._graphs = TokenGraphs(self._bundle, SETTINGS)
        self._shape = HeadShape.of(self._bundle.manifest)

    def mean_heads(self) -> np.ndarray:
        found = []
        for number in range(len(SHOWN)):
            others = [SHOWN[other] for other in behind_others(number, len(SHOWN))]
            turns = [turn for ask, said in others for turn in (self._asked(ask), Turn("assistant", (said,)))]
            turns.append(self._asked(SHOWN[number][0]))
            prompt = self._runner.prompt(turns, [self._picture] * (len(others) + 1))
            run_of_all = prompt.run(0, prompt.num_tokens, [0], [0])
            _, given = self._decoder(prompt.num_tokens).run_with(self._shape.outputs, "prompt", 0, [run_of_all])
            found.append([given[name][0, 0] for name in self._shape.outputs])
        return np.mean(found, axis=0)

    def loss(self, heads: HeadValues | None) -> float:
        losses = []
        for ask, said in SHOWN:
            prompt, ids = self._runner.prompt([self._asked(ask)], [self._picture]), self._runner.answer_ids(said)
            end = prompt.num_tokens
            whole = prompt.run(0, end, [0], range(end - 1, end + len(ids) - 1))
            run_of_all = dataclasses.replace(
                whole,
                ids=np.concatenate([whole.ids, ids[:-1]]),
                positions=np.arange(end + len(ids) - 1),
                heads=heads,
                first_replaced=end - 1,
            )
            logits = self._decoder(end + len(ids)).run("prompt", 0, [run_of_all])[0].astype(np.float64)
            log_p = logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()
            losses.append(-log_p[np.arange(len(ids)), ids].mean())
        return float(np.mean(losses))

    def _asked(self, text: str) -> Turn:
        return Turn("user", (Placeholder.IMAGE, text))

    def _decoder(self, num_rows: int) -> Decoder:
        return Decoder(self._graphs, cache_shape(self._bundle.manifest, 1, num_rows))


def test_what_cannot_be_is_refused_by_name(make_model, answer, opened_bundle, smolvlm_bundle, image_bytes) -> None:
    model, plain = make_model(opened_bundle), make_model(smolvlm_bundle)
    vector, own, pairs = random_vector(opened_bundle), message("user", "Why?"), shown(image_bytes(3))

    async def refused(model: GenerativeModel, asked: GenerateRequest, told: str) -> None:
        with pytest.raises(ParameterError, match=told):
            await answer(model, asked)

    async def main() -> None:
        await refused(plain, request(*pairs, learns=True), "exported without --task-vectors")
        await refused(plain, request(own, behind=vector.to_bytes()), "exported without --task-vectors")
        await refused(model, request(*pairs[:2], learns=True), "at least 2 demonstrations.*not of user, assistant")
        await refused(model, request(*pairs, own, learns=True), "messages of user and assistant in turn")
        await refused(model, request(own, behind=vector.to_bytes()[:-40]), "task vector is damaged")
        moved = dataclasses.replace(vector, identity="other").to_bytes()
        await refused(model, request(own, behind=moved), "made with another bundle than the tiny-smolvlm")

    run(main)
