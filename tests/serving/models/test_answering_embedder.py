"""One bundle that answers and embeds: answers as of a bundle that answers, vectors as of one that embeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient
from numpy.testing import assert_allclose
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import QuantizationError, UnsupportedConfigError
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from serving.models.client import LocalClient
from serving.protocol import EmbedRequest, ImagePart, JoinedPart, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, max_waiting=8, intra_threads=1, prefill_chunk_tokens=32)
# float32 sums in another order: prompts that run side by side are padded to one another
ATOL = 1e-5
NAME = "tiny-smolvlm"


def png(seed: int) -> bytes:
    pixels, target = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), np.uint8), BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()


INPUTS = (TextPart("a red bicycle"), ImagePart(png(0)), JoinedPart((ImagePart(png(1)), TextPart("red"))))


@pytest.fixture(scope="module")
def exported(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The function that returns a bundle of the task "both" or "embed", or of what the checkpoint does by itself."""
    made: dict[str, Path] = {}

    def bundle(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp("both") / NAME
            options = EmbeddingOptions("last", "plain", also_answers=task == "both") if task else None
            export_checkpoint(smolvlm_checkpoint, made[task], name=NAME, embedding=options)
        return made[task]

    return bundle


def served(bundle: Path, work: Callable[[LocalClient], Any], **changes: Any) -> Any:
    async def main() -> Any:
        async with LocalClient([bundle], SETTINGS.model_copy(update=changes)) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(main(), 120))


def asks(ask: Callable[..., Any]) -> Any:
    return ask(png(0), "What is it?", max_tokens=8, ignores_eos=True, temperature=0)


async def embedded(client: LocalClient) -> list[np.ndarray]:
    (card,) = await client.models()
    return list((await client.embed(EmbedRequest("e", card.name, INPUTS))).embeddings)


def test_answers_and_vectors_are_those_of_two_bundles(exported, ask, answer) -> None:
    async def answered(client: LocalClient) -> Any:
        return (await answer(client, asks(ask))).token_ids

    async def both(client: LocalClient) -> Any:
        # at once: steps of answers and prompts of vectors share the decoder's sessions
        first, vectors, second = await asyncio.gather(answered(client), embedded(client), answered(client))
        assert first == second
        return first, vectors

    told, vectors = served(exported("both"), both)
    assert told == served(exported(""), answered)
    assert_allclose(vectors, served(exported("embed"), embedded), atol=ATOL)
    assert not np.allclose(vectors[0], vectors[1], atol=100 * ATOL)


def test_the_decoder_lies_on_the_disk_once(exported) -> None:
    sizes = {task: sum(file.stat().st_size for file in exported(task).glob("*.data")) for task in ("both", "")}
    assert sizes["both"] == sizes[""]
    manifest = open_bundle(exported("both")).manifest
    assert manifest.decoder is not None
    assert manifest.embedder is not None
    assert not manifest.embeds  # gates measure its answers


def test_chats_and_embeddings_are_served_under_one_name(exported) -> None:
    from serving.api.app import create_app
    from serving.settings import ApiSettings

    async def work(client: LocalClient) -> None:
        transport = ASGITransport(app=create_app(client, ApiSettings()))
        async with AsyncClient(transport=transport, base_url="http://test") as http:
            (card,) = (await http.get("/v1/models")).json()["data"]
            assert card["capabilities"]["chat"]
            assert card["capabilities"]["embeddings"]
            body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            chat = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()
            assert chat["usage"]["completion_tokens"] > 0
            found = await http.post("/v1/embeddings", json={"model": NAME, "input": ["a red bicycle", "a dog"]})
            vectors = [each["embedding"] for each in found.raise_for_status().json()["data"]]
            assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            ranked = {"model": NAME, "query": "bicycle", "documents": ["a red bicycle", "a dog"]}
            assert len((await http.post("/v1/rerank", json=ranked)).raise_for_status().json()["results"]) == 2
            refused = await http.post("/v1/embeddings", json={"model": NAME, "input": ["x"], "dimensions": 3})
            assert refused.status_code == 400

    served(exported("both"), work)


def test_a_variant_of_int8_answers_and_embeds(exported, ask, answer, tmp_path) -> None:
    quantize_bundle(exported("both"), tmp_path / "int8", weights="int8")

    async def work(client: LocalClient) -> Any:
        (card,) = await client.models()
        return await embedded(client), (await answer(client, replace(asks(ask), model=card.name))).token_ids

    vectors, told = served(tmp_path / "int8", work, allow_ungated=True)
    whole = served(exported("both"), embedded)
    assert len(told) == 8
    assert min(float(a @ b) for a, b in zip(vectors, whole, strict=True)) > 0.97


def test_what_is_not_built_is_refused_by_name(exported, tmp_path, smolvlm_checkpoint) -> None:
    with pytest.raises(QuantizationError, match="answers and embeds by one decoder, which is for the CPU"):
        quantize_bundle(exported("both"), tmp_path / "a", weights="int8", options=Options(target="cuda"))
    with pytest.raises(QuantizationError, match="answers and embeds by one decoder, whose cache holds floats"):
        quantize_bundle(exported("both"), tmp_path / "a", weights="int8", options=Options(kv_cache="int8"))
    with pytest.raises(QuantizationError, match="gives its states and keeps no cache"):
        quantize_bundle(exported("embed"), tmp_path / "a", weights="fp16", options=Options(target="cuda"))
    both = EmbeddingOptions("last", also_answers=True)
    with pytest.raises(UnsupportedConfigError, match="leave out --decoder-segments"):
        export_checkpoint(smolvlm_checkpoint, tmp_path / "b", segments=[1], embedding=both)
