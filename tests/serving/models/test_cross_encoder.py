"""A cross-encoder as it is served: pairs in their order, an image once, what is no pair refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ImageError, ParameterError, SettingsError, TaskError
from export.exporter import export_checkpoint
from loadtests.latency import run_benchmark
from serving.api.app import create_app
from serving.models.cards import card_of
from serving.models.client import LocalClient
from serving.models.cross_encoder import CrossEncoderModel
from serving.protocol import EmbedRequest, ImagePart, JoinedPart, ScoreRequest, TextPart, TokenizeRequest
from serving.settings import ApiSettings, EngineSettings

SETTINGS = EngineSettings(max_sequences=2, max_waiting=4, intra_threads=1, vision_batch_tiles=3)
ATOL = 1e-5


@pytest.fixture(scope="module")
def vilt_bundle(vilt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vilt") / "bundle"
    export_checkpoint(vilt_checkpoint, folder, name="tiny-vilt")
    return folder


@pytest.fixture
def model(vilt_bundle: Path, pool: Any) -> Iterator[CrossEncoderModel]:
    model = CrossEncoderModel(open_bundle(vilt_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def scored(model: CrossEncoderModel, *pairs: Any, **options: Any) -> Any:
    made = tuple(tuple(TextPart(each) if isinstance(each, str) else ImagePart(each) for each in pair) for pair in pairs)
    return asyncio.run(asyncio.wait_for(model.score(ScoreRequest("r", "m", made, **options)), 60))  # type: ignore[arg-type]


def test_pairs_together_are_scored_as_each_alone(model: CrossEncoderModel, image_bytes: Any) -> None:
    first, second = image_bytes(1), image_bytes(2, 20, 90)
    pairs = [("a cat", first), ("a dog", first), (second, "a"), ("a cat", second), ("a much longer text", first)]
    alone = [scored(model, pair) for pair in pairs]
    together = scored(model, *pairs)
    np.testing.assert_allclose(together.scores, [each.scores[0] for each in alone], atol=ATOL)
    assert together.prompt_tokens == sum(each.prompt_tokens for each in alone)
    assert len(set(together.scores.tolist())) == len(pairs)


def test_an_image_of_several_pairs_is_decoded_once(
    model: CrossEncoderModel, image_bytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    cut = model._pool.cut
    monkeypatch.setattr(model._pool, "cut", lambda owner, spec, data: decoded.append(data) or cut(owner, spec, data))
    scored(model, *[(text, image_bytes(1)) for text in ("a", "b", "c")])
    assert len(decoded) == 1


def test_a_long_text_is_refused_or_cut(model: CrossEncoderModel, image_bytes: Any) -> None:
    long = "a " * 40
    with pytest.raises(ContextLengthError, match="at most 24 are read"):
        scored(model, (long, image_bytes(1)))
    found = scored(model, (long, image_bytes(1)), truncate_tokens=-1)
    np.testing.assert_allclose(found.scores, scored(model, ("a " * 22, image_bytes(1))).scores, atol=ATOL)
    assert found.prompt_tokens == 24
    with pytest.raises(ParameterError, match="truncate_prompt_tokens = 25: the model reads 3 to 24"):
        scored(model, ("a", image_bytes(1)), truncate_tokens=25)


def test_what_is_no_pair_is_refused(model: CrossEncoderModel, image_bytes: Any) -> None:
    with pytest.raises(ParameterError, match="a pair of a text and a text"):
        scored(model, ("a", "b"))
    with pytest.raises(ParameterError, match="a pair of an image and an image"):
        scored(model, (image_bytes(1), image_bytes(2)))
    with pytest.raises(ImageError, match="not an image"):
        scored(model, ("a", b"not an image"))
    assert len(scored(model, ("a", image_bytes(1))).scores) == 1


def test_a_client_serves_it_and_it_makes_no_vectors(vilt_bundle: Path, image_bytes: Any) -> None:
    async def main() -> None:
        async with LocalClient([vilt_bundle], SETTINGS) as client:
            pair = (TextPart("a cat"), ImagePart(image_bytes(1)))
            assert len((await client.score(ScoreRequest("r", "tiny-vilt", (pair,)))).scores) == 1
            told = await client.tokenize(TokenizeRequest("r", "tiny-vilt", text="ab"))
            assert told.pieces == ("[CLS]", "a", "##b", "[SEP]")
            with pytest.raises(TaskError, match="tiny-vilt does cross-encoder; it is not made for embedding"):
                await client.embed(EmbedRequest("r", "tiny-vilt", (TextPart("a"),)))

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture(scope="module")
def text_bundle(rerankers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    rerankers.save(folder / "checkpoint", "bert")
    export_checkpoint(folder / "checkpoint", folder / "bundle", name="tiny-bert")
    return folder / "bundle"


@pytest.fixture
def text_model(text_bundle: Path, pool: Any) -> Iterator[CrossEncoderModel]:
    model = CrossEncoderModel(open_bundle(text_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def test_two_texts_together_are_scored_as_each_pair_alone(text_model: CrossEncoderModel) -> None:
    pairs = [("a cat", "a"), ("a", "a cat"), ("a cat", "a long text that goes on"), ("q", "z")]
    alone = [scored(text_model, pair) for pair in pairs]
    together = scored(text_model, *pairs)
    np.testing.assert_allclose(together.scores, [each.scores[0] for each in alone], atol=ATOL)
    assert together.prompt_tokens == sum(each.prompt_tokens for each in alone)
    assert len(set(together.scores.tolist())) == len(pairs)
    raw = scored(text_model, *pairs, is_raw=True).scores
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), together.scores, atol=ATOL)


def test_long_pairs_of_texts_are_refused_or_the_longer_text_is_cut(text_model: CrossEncoderModel) -> None:
    long = "a " * 80
    with pytest.raises(ContextLengthError, match="the two texts take 84 tokens together; at most 48 are read"):
        scored(text_model, ("q", long))
    found = scored(text_model, ("q", long), truncate_tokens=-1)
    np.testing.assert_allclose(found.scores, scored(text_model, ("q", "a " * 44)).scores, atol=ATOL)
    assert found.prompt_tokens == 48
    with pytest.raises(ParameterError, match="truncate_prompt_tokens = 4: the model reads 5 to 48"):
        scored(text_model, ("a", "b"), truncate_tokens=4)


def test_a_model_of_two_texts_refuses_images(text_model: CrossEncoderModel, image_bytes: Any) -> None:
    with pytest.raises(ParameterError, match="a pair of a text and an image: the model reads two texts together"):
        scored(text_model, ("a", image_bytes(1)))


def test_only_models_that_see_are_said_to_take_images(text_bundle: Path, vilt_bundle: Path) -> None:
    cards = [card_of(open_bundle(bundle).manifest, SETTINGS) for bundle in (text_bundle, vilt_bundle)]
    assert [card.takes_images for card in cards] == [False, True]


def test_a_long_pair_is_told_of_the_field_that_cuts_it_where_the_route_has_one(text_bundle: Path) -> None:
    async def main() -> None:
        async with LocalClient([text_bundle], SETTINGS) as client:
            app = create_app(client, ApiSettings())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
                for long in ("a " * 60, "a " * 4000):
                    pair = {"content": [{"type": "text", "text": each} for each in ("q", long)]}
                    for path, body in (
                        ("/v1/rerank", {"query": "q", "documents": [long]}),
                        ("/v1/score", {"text_1": "q", "text_2": long}),
                        ("/pooling", {"input": [pair]}),
                    ):
                        answer = await http.post(path, json=body)
                        assert answer.status_code == 400
                        assert "Or let it be cut: truncate_prompt_tokens = -1." in answer.json()["error"]["message"]
                        assert (await http.post(path, json={**body, "truncate_prompt_tokens": -1})).status_code == 200
                told = await http.post("/tokenize", json={"prompt": "a" * 200_000})
                assert "truncate_prompt_tokens" not in told.json()["error"]["message"]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_texts_are_reranked_over_http(text_bundle: Path, text_model: CrossEncoderModel) -> None:
    documents = ["a cat", "boats", "what"]
    expected = scored(text_model, *[("a", each) for each in documents]).scores

    async def main() -> None:
        async with LocalClient([text_bundle], SETTINGS) as client:
            app = create_app(client, ApiSettings())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
                told = (await http.post("/v1/rerank", json={"query": "a", "documents": documents})).json()
                pairs = (await http.post("/v1/score", json={"text_1": "a", "text_2": documents})).json()
        by_index = {result["index"]: result["relevance_score"] for result in told["results"]}
        np.testing.assert_allclose([by_index[place] for place in range(3)], expected, atol=ATOL)
        np.testing.assert_allclose([item["score"] for item in pairs["data"]], expected, atol=ATOL)
        assert told["results"][0]["index"] == int(np.argmax(expected))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_benchmark_of_answers_and_vectors_refuses_it(vilt_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="tiny-vilt scores pairs"):
        run_benchmark(vilt_bundle)


@pytest.fixture(scope="module")
def video_bundle(all_in_one: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all_in_one")
    all_in_one.save(folder / "checkpoint", all_in_one.geometries()["retrieval-three-frames"])
    export_checkpoint(folder / "checkpoint", folder / "bundle", name="tiny-videos")
    return folder / "bundle"


def test_frames_of_a_video_are_read_beside_a_text(video_bundle: Path, pool: Any, image_bytes: Any) -> None:
    model = CrossEncoderModel(open_bundle(video_bundle), SETTINGS, pool)
    model.start()
    frames = [ImagePart(image_bytes(number)) for number in range(9)]
    still, three = JoinedPart((frames[1],) * 3), JoinedPart((frames[1], frames[4], frames[7]))

    def score(*pairs: tuple[Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(model.score(ScoreRequest("r", "m", pairs)), 60)).scores

    text = TextPart("a cat")
    try:
        found = score((text, three), (JoinedPart(tuple(frames)), text), (text, frames[1]), (text, still))
        np.testing.assert_allclose(found[[0, 2]], found[[1, 3]], atol=ATOL)  # the middles of three stretches; a still
        assert abs(found[0] - found[2]) > ATOL
        np.testing.assert_allclose(score((text, three)), found[:1], atol=ATOL)
        with pytest.raises(ParameterError, match="the other an image, or the frames of a video in order"):
            score((text, JoinedPart((frames[0], text))))
        with pytest.raises(ParameterError, match="a pair of a text and a text"):
            score((text, text))
    finally:
        model.close()


def test_a_request_puts_videos_in_order_and_answers_a_multiple_choice(video_bundle: Path, image_bytes: Any) -> None:
    urls = [f"data:image/png;base64,{base64.b64encode(image_bytes(number)).decode()}" for number in range(3)]
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    async def main() -> tuple[Any, Any]:
        async with LocalClient([video_bundle], SETTINGS) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                ranked = {"query": "a cat", "documents": [{"content": shown}, shown[0]]}
                asked = {"text_1": {"content": shown}, "text_2": ["it runs", "it sits"]}
                return await http.post("/v1/rerank", json=ranked), await http.post("/v1/score", json=asked)

    ranked, scored = asyncio.run(asyncio.wait_for(main(), 60))
    assert sorted(each["index"] for each in ranked.json()["results"]) == [0, 1]
    assert len({each["score"] for each in scored.json()["data"]}) == 2
