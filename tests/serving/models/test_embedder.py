"""Models that embed by a decoder: what is served is what one prompt after another gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ImageError, ParameterError, TaskError, UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings
from serving.models.client import LocalClient
from serving.models.embedder import EmbedderModel
from serving.protocol import (
    ClassifyRequest,
    EmbedRequest,
    EmbedResult,
    ImagePart,
    JoinedPart,
    TextPart,
    TokenizeRequest,
    TokensPart,
)
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=4, max_waiting=6, intra_threads=1)
# Prompts that run side by side are padded to one another, and their sums are rounded in another order
ATOL = 1e-5
PROJECTED_SIZE = 8
PREFIXES = {"query": "Query: ", "document": "Passage: "}


@pytest.fixture(scope="module")
def checkpoint(colidefics3: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolVLM with a projection as ColIdefics3 has it, prefixes as sentence-transformers keeps them, and cuts."""
    folder: Path = colidefics3(tmp_path_factory.mktemp("embedder") / "checkpoint", PROJECTED_SIZE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [4]}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PREFIXES}))
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The function that returns the bundle of a pooling, exported once."""
    made: dict[str, Path] = {}

    def bundle(pooling: str) -> Path:
        if pooling not in made:
            made[pooling] = tmp_path_factory.mktemp("embedder") / pooling
            options = EmbeddingOptions(pooling)  # type: ignore[arg-type]
            export_checkpoint(checkpoint, made[pooling], name=f"tiny-{pooling}", embedding=options)
        return made[pooling]

    return bundle


@pytest.mark.parametrize("part", ["a red bicycle", Image.new("RGB", (90, 40), (200, 30, 60))])
def test_colidefics3_gives_the_projected_states_of_its_processors_prompt(
    checkpoint: Path, smolvlm_checkpoint: Path, tmp_path: Path, part: str | Image.Image
) -> None:
    """colpali_engine's ColIdefics3: transformers' model, its `linear` behind, and unit length."""
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor, SmolVLMForConditionalGeneration

    options = EmbeddingOptions(template="colidefics3")
    export_checkpoint(checkpoint, tmp_path / "bundle", name="tiny", embedding=options)
    is_text = isinstance(part, str)
    shown = "<|im_start|>User:<image>Describe the image.<end_of_utterance>\nAssistant:"
    processor = AutoProcessor.from_pretrained(smolvlm_checkpoint, backend="pil")
    written = {"text": part + "<end_of_utterance>" * 10} if is_text else {"text": shown, "images": [part]}
    model, weights = (
        SmolVLMForConditionalGeneration.from_pretrained(smolvlm_checkpoint).eval(),
        load_file(checkpoint / "model.safetensors"),
    )
    with torch.no_grad():
        inputs = processor(**written, return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states[-1][0].numpy()
    expected = states @ weights["linear.weight"].T + weights["linear.bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    runner = EmbedderRunner(open_bundle(tmp_path / "bundle"), RuntimeSettings(intra_threads=1))
    (found,) = runner.embed_texts([part]) if isinstance(part, str) else runner.embed_images([part])
    assert found.shape == expected.shape
    assert (1 - (found * expected).sum(axis=-1)).max() < 1e-4


@pytest.fixture
def model(bundles: Callable[[str], Path], pool: Any) -> Iterator[EmbedderModel]:
    model = EmbedderModel(open_bundle(bundles("last")), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def request(*inputs: Any, **options: Any) -> EmbedRequest:
    parts = [TextPart(each) if isinstance(each, str) else each for each in inputs]
    return EmbedRequest("r", "m", tuple(parts), **options)


def alone(bundle: Path, *parts: str | bytes) -> np.ndarray:
    """Return the vectors of one input, run by itself."""
    images = [Image.open(BytesIO(part)).convert("RGB") for part in parts if isinstance(part, bytes)]
    turn = Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))
    (vectors,) = EmbedderRunner(open_bundle(bundle), RuntimeSettings(intra_threads=1)).embed_turns([([turn], images)])
    return vectors


def joined(*parts: str | bytes) -> JoinedPart:
    return JoinedPart(tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


@pytest.mark.parametrize("pooling", ["last", "mean", "tokens"])
def test_texts_images_and_both_are_embedded_as_each_alone(
    bundles: Callable[[str], Path], pool: Any, image_bytes: Any, pooling: str
) -> None:
    bundle = bundles(pooling)
    image, other = image_bytes(1), image_bytes(2, 20, 90)
    inputs = ["a cat", ImagePart(image), joined(other, "what is it?"), "a much longer line of text", ImagePart(other)]
    parts = [("a cat",), (image,), (other, "what is it?"), ("a much longer line of text",), (other,)]
    model = EmbedderModel(open_bundle(bundle), SETTINGS, pool)
    model.start()

    async def main() -> None:
        result = await model.embed(request(*inputs))
        assert len(result.embeddings) == len(inputs)
        for found, own in zip(result.embeddings, parts, strict=True):
            np.testing.assert_allclose(found, alone(bundle, *own), atol=ATOL)
            np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
        assert result.prompt_tokens > 3 * 20  # those of images count

    try:
        run(main)
    finally:
        model.close()
    if pooling == "tokens":
        assert {vectors.shape[1] for vectors in (alone(bundle, *own) for own in parts)} == {PROJECTED_SIZE}


def test_ids_are_read_as_they_are(model: EmbedderModel) -> None:
    async def main() -> None:
        told = await model.tokenize(TokenizeRequest("r", "m", text="a cat"))
        of_text, of_ids = await model.embed(request("a cat")), await model.embed(request(TokensPart(told.token_ids)))
        np.testing.assert_allclose(of_ids.embeddings, of_text.embeddings, atol=ATOL)
        assert of_ids.prompt_tokens == of_text.prompt_tokens == len(told.token_ids)

    run(main)


def test_tokens_of_a_longer_text_than_is_read_are_counted(model: EmbedderModel) -> None:
    async def main() -> None:
        long = "a " * 600
        with pytest.raises(ContextLengthError, match="1 to 512 are read"):
            await model.embed(request(long))
        assert len((await model.tokenize(TokenizeRequest("r", "m", text=long))).token_ids) > 1200
        with pytest.raises(ContextLengthError, match="4096 tokens hold at most"):
            await model.tokenize(TokenizeRequest("r", "m", text="a" * 200_000))

    run(main)


def test_inputs_of_a_type_begin_with_its_prefix(model: EmbedderModel) -> None:
    async def main() -> None:
        found = await model.embed(request("a cat", "a cat", "a cat", input_types=("query", "document", "query")))
        expected = await model.embed(request("Query: a cat", "Passage: a cat"))
        np.testing.assert_allclose(found.embeddings[:2], expected.embeddings, atol=ATOL)
        assert abs(found.embeddings[0] @ found.embeddings[1]) < 1 - 1e-4

    run(main)


def test_an_instruction_is_a_systems_turn(model: EmbedderModel, bundles: Callable[[str], Path]) -> None:
    turns = [Turn("system", ("Find it.",)), Turn("user", ("a cat",))]
    runner = EmbedderRunner(open_bundle(bundles("last")), RuntimeSettings(intra_threads=1))

    async def main() -> None:
        found = await model.embed(request("a cat", instruction="Find it."))
        np.testing.assert_allclose(found.embeddings[0], runner.embed_turns([(turns, [])])[0], atol=ATOL)

    run(main)


def test_a_long_text_loses_its_end_and_the_template_stays(model: EmbedderModel, image_bytes: Any) -> None:
    async def embedded(part: Any, **options: Any) -> EmbedResult:
        return await model.embed(request(part, **options))

    async def main() -> None:
        limit = model.card.context_tokens
        assert limit is not None
        num_around = (await embedded("a")).prompt_tokens - 1
        long = "b" * 4000
        with pytest.raises(ContextLengthError, match=f"1 to {limit} are read"):
            await embedded(long)
        for most, left in ((-1, limit), (40, 40)):
            found, expected = await embedded(long, truncate_tokens=most), await embedded("b" * (left - num_around))
            assert found.prompt_tokens == expected.prompt_tokens == left
            np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=ATOL)
        with pytest.raises(ParameterError, match=f"reads {limit} tokens at most"):
            await embedded("a", truncate_tokens=limit + 1)
        with pytest.raises(ContextLengthError, match="however short its text is"):
            await embedded(joined(image_bytes(1), "a"), truncate_tokens=10)

    run(main)


def test_ids_are_cut_as_their_text_is_and_end_as_the_template_does(model: EmbedderModel) -> None:
    async def main() -> None:
        long, limit = "b" * 2000, model.card.context_tokens
        ids = (await model.tokenize(TokenizeRequest("r", "m", text=long))).token_ids
        assert limit is not None
        assert len(ids) > limit
        for most, left in ((-1, limit), (40, 40)):
            found = await model.embed(request(TokensPart(ids), truncate_tokens=most))
            expected = await model.embed(request(long, truncate_tokens=most))
            assert found.prompt_tokens == expected.prompt_tokens == left
            np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=ATOL)
        with pytest.raises(ContextLengthError, match="3 tokens are allowed, and the model's template alone takes"):
            await model.embed(request(TokensPart(ids), truncate_tokens=3))
        with pytest.raises(ParameterError, match="do not end as the model's template ends a text"):
            await model.embed(request(TokensPart(ids[:60]), truncate_tokens=40))
        assert (await model.embed(request(TokensPart(ids[:40]), truncate_tokens=40))).prompt_tokens == 40

    run(main)


def test_vectors_are_cut_to_sizes_that_the_bundle_declares(model: EmbedderModel) -> None:
    async def main() -> None:
        whole, cut = await model.embed(request("a")), await model.embed(request("a", dimensions=4))
        expected = whole.embeddings[0][:4]
        np.testing.assert_allclose(cut.embeddings[0], expected / np.linalg.norm(expected), rtol=1e-5)
        with pytest.raises(ParameterError, match="dimensions = 5: the model's vectors have 48 or 4 numbers"):
            await model.embed(request("a", dimensions=5))

    run(main)


def test_what_means_nothing_is_refused_and_the_next_is_served(model: EmbedderModel, image_bytes: Any) -> None:
    image_id = model.tokenizer.token_id("<image>")
    assert image_id is not None
    cases = [
        (request(), ParameterError, "input is empty"),
        (request(ImagePart(b"not an image")), ImageError, "not an image"),
        (request(TokensPart((10**9,))), ParameterError, "token 1000000000 is none of the model's"),
        (request(TokensPart((image_id,))), ParameterError, "stands for an image"),
        (request(TokensPart(())), ContextLengthError, "takes 0 tokens"),
    ]

    async def main() -> None:
        for asked, kind, message in cases:
            with pytest.raises(kind, match=message):
                await model.embed(asked)
        assert len((await model.embed(request("still here"))).embeddings) == 1

    run(main)


def test_a_client_serves_it_and_tells_what_else_it_does_not_do(
    bundles: Callable[[str], Path], image_bytes: Any
) -> None:
    async def main() -> None:
        async with LocalClient([bundles("tokens")], SETTINGS) as client:
            (card,) = await client.models()
            assert (card.task, card.context_tokens, card.kv_policies) == ("image-text-embedding", 512, ())
            result = await client.embed(EmbedRequest("r", card.name, (TextPart("a cat"), ImagePart(image_bytes(1)))))
            assert [each.shape[1] for each in result.embeddings] == [PROJECTED_SIZE] * 2
            with pytest.raises(TaskError, match="does image-text-embedding"):
                await client.classify(ClassifyRequest("r", card.name, (ImagePart(image_bytes(1)),), ("a", "b")))

    run(main)


def test_exports_that_contradict_themselves_are_refused(
    smolvlm_checkpoint: Path, clip_checkpoint: Path, tmp_path: Path
) -> None:
    def export(checkpoint: Path, message: str, **options: Any) -> None:
        segments = options.pop("segments", ())
        with pytest.raises(UnsupportedConfigError, match=message):
            export_checkpoint(checkpoint, tmp_path / "bundle", segments=segments, embedding=EmbeddingOptions(**options))

    export(smolvlm_checkpoint, "--pooling tokens wants a projection of every token", pooling="tokens")
    export(smolvlm_checkpoint, "--template nowhere is no file", template="nowhere")
    export(smolvlm_checkpoint, "leave out --decoder-segments", segments=[1])
    export(clip_checkpoint, "clip makes vectors as it is")


def test_tokens_of_a_model_of_one_vector_have_theirs_raw_or_not(model: EmbedderModel) -> None:
    text = "a red bicycle"

    async def main() -> None:
        whole = (await model.embed(request(text, granularity="input", is_raw=True))).embeddings
        rows = (await model.embed(request(text, "a", granularity="token", is_raw=True))).embeddings
        np.testing.assert_allclose(rows[0][-1], whole[0], atol=1e-4)  # numbers that are larger than a unit vector's
        assert np.linalg.norm(whole) > 1.5
        assert len(rows[0]) == len((await model.tokenize(TokenizeRequest("r", "m", text=text))).token_ids)
        (units,) = (await model.embed(request(text, granularity="token"))).embeddings
        np.testing.assert_allclose(units, rows[0] / np.linalg.norm(rows[0], axis=1, keepdims=True), atol=ATOL)

    run(main)


def test_a_model_of_vectors_of_tokens_has_none_of_the_whole(bundles: Callable[[str], Path], pool: Any) -> None:
    model = EmbedderModel(open_bundle(bundles("tokens")), SETTINGS, pool)

    async def main() -> None:
        with pytest.raises(ParameterError, match="has a vector for every token; ask for token_embed"):
            await model.embed(request("a", granularity="input"))

    run(main)
