"""Tokens of texts and conversations by a real model's tokenizer, and texts that it goes on with."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ParameterError, PromptError, TaskError
from serving.models.embedding import EmbeddingModel
from serving.models.generative import GenerativeModel
from serving.protocol import DetokenizeRequest, GenerateRequest, SamplingParams, TokenizeRequest
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1)


@pytest.fixture
def model(smolvlm_bundle, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


@pytest.fixture
def embedder(clip_bundle, pool):
    model = EmbeddingModel(open_bundle(clip_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def test_counts_of_a_conversation_are_those_of_its_answer(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        request = ask(image_bytes(), "hello", max_tokens=1)
        found = await model.tokenize(TokenizeRequest("t", "tiny-smolvlm", request.messages))
        usage = (await answer(model, request)).finished.usage
        assert len(found.token_ids) == len(found.pieces) == usage.prompt_tokens
        closed = await model.tokenize(TokenizeRequest("t", "tiny-smolvlm", request.messages, opens_answer=False))
        assert len(closed.token_ids) < len(found.token_ids)

    asyncio.run(main())


def test_a_text_and_its_tokens_are_the_same_text(model, embedder) -> None:
    async def main() -> None:
        for each, text in ((model, "a <image> é 漢"), (embedder, "circle")):
            found = await each.tokenize(TokenizeRequest("t", "m", text=text, adds_special_tokens=False))
            told = await each.detokenize(DetokenizeRequest("t", "m", found.token_ids))
            assert told.removesuffix("</w>") == text  # the tiny CLIP has no decoder, which would drop that
            with pytest.raises(ParameterError, match="is no token"):
                await each.detokenize(DetokenizeRequest("t", "m", (10**6,)))

    asyncio.run(main())


def test_a_text_is_gone_on_with_without_a_template(model, answer) -> None:
    async def main() -> None:
        request = GenerateRequest(
            "r", "tiny-smolvlm", (), SamplingParams(max_tokens=3, ignores_eos=True), text="<image>ab"
        )
        said = await answer(model, request)
        counted = await model.tokenize(TokenizeRequest("t", "tiny-smolvlm", text="<image>ab"))
        assert len(said.token_ids) == 3
        assert said.finished.usage.prompt_tokens == len(counted.token_ids)
        assert said.finished.usage.image_tokens == 0

    asyncio.run(main())


def test_texts_that_cannot_be_gone_on_with_are_refused(model, embedder, answer) -> None:
    async def main() -> None:
        request = GenerateRequest("r", "tiny-smolvlm", (), SamplingParams(max_tokens=3), text="x" * 600)
        for text, error in (("a b " * 600, ContextLengthError), ("x" * 10**6, ContextLengthError), ("", PromptError)):
            with pytest.raises(error):
                await answer(model, dataclasses.replace(request, text=text))
        with pytest.raises(TaskError):
            await embedder.tokenize(TokenizeRequest("t", "tiny-clip"))

    asyncio.run(main())
