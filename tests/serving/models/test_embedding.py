"""Embeddings and classification of a tiny CLIP bundle, against transformers and closed forms."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.dims import DualEncoderDims
from bundle.directory import open_bundle, read_manifest
from bundle.errors import ContextLengthError, ImageError, OverloadedError, ParameterError
from bundle.text import TextBatch
from serving.models import embedding
from serving.models.embedding import EmbeddingModel, scores
from serving.protocol import ClassifyRequest, EmbedRequest, EmbedResult, ImagePart, TextPart, TokensPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, max_waiting=6, intra_threads=1, text_batch_rows=3, vision_batch_tiles=2)
# Other batch heights round float32 sums differently; unit vectors of a few dozen elements agree far closer than this.
ATOL = 1e-5


@pytest.fixture
def model(clip_bundle, pool):
    model = EmbeddingModel(open_bundle(clip_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def inputs(*parts: str | bytes) -> EmbedRequest:
    return EmbedRequest("r", "m", tuple(TextPart(p) if isinstance(p, str) else ImagePart(p) for p in parts))


@pytest.fixture(scope="module")
def reference(clip_checkpoint):
    """The function that embeds one text or image with transformers' model and processor, to unit length."""
    torch = pytest.importorskip("torch")
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_checkpoint)
    images = CLIPImageProcessorPil.from_pretrained(clip_checkpoint)

    def embed(part: str | bytes) -> np.ndarray:
        with torch.no_grad():
            if isinstance(part, str):
                output = model.text_model(**tokenizer(part, return_tensors="pt"))
                vector = model.text_projection(output.pooler_output)
            else:
                pixels = images(Image.open(BytesIO(part)).convert("RGB"), return_tensors="pt")
                vector = model.visual_projection(model.vision_model(**pixels).pooler_output)
        return (vector / vector.norm()).numpy()[0]

    return embed


def test_embeddings_equal_transformers_in_the_order_of_the_inputs(model, reference, image_bytes) -> None:
    parts = ["a cat", image_bytes(1), "a much longer line of text", image_bytes(2, 20, 90), "b"]

    async def main() -> None:
        result = await model.embed(inputs(*parts))
        expected = np.stack([reference(part) for part in parts])
        np.testing.assert_allclose(result.embeddings, expected, atol=1e-4)  # the exporter's own promise
        np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-6)

    run(main)


def test_concurrent_requests_share_batches_and_get_their_own_vectors(model, image_bytes, monkeypatch) -> None:
    requests = [inputs(*(f"text {i} " * (i % 4 + 1) for i in range(n)), image_bytes(n)) for n in range(1, 7)]
    batches, encode = [], embedding.encode_texts

    def counted(session: object, rows: list[TextBatch], dims: object, **told: object) -> object:
        batches.append(sum(len(row.input_ids) for row in rows))
        return encode(session, rows, dims, **told)

    monkeypatch.setattr(embedding, "encode_texts", counted)

    async def main() -> None:
        alone = [await model.embed(request) for request in requests]
        batches.clear()
        together = await asyncio.gather(*(model.embed(request) for request in requests))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other.embeddings, one.embeddings, atol=ATOL)
            assert other.prompt_tokens == one.prompt_tokens
        assert sum(batches) == 21
        assert 1 < max(batches) <= 3

    run(main)


def test_vectors_are_cut_to_sizes_that_the_bundle_declares(model, monkeypatch) -> None:
    whole = model._dims.embedding_size

    async def embedded(dimensions: int | None) -> np.ndarray:
        return (await model.embed(EmbedRequest("r", "m", (TextPart("a cat"),), dimensions))).embeddings

    async def main() -> None:
        with pytest.raises(ParameterError, match=f"dimensions = 4: the model's vectors have {whole} numbers"):
            await embedded(4)
        monkeypatch.setattr(model, "_dims", model._dims.model_copy(update={"matryoshka": (4,)}))
        all_of_it, cut = await embedded(None), await embedded(4)
        np.testing.assert_allclose(cut, all_of_it[:, :4] / np.linalg.norm(all_of_it[:, :4]), rtol=1e-6)
        np.testing.assert_array_equal(await embedded(whole), all_of_it)
        with pytest.raises(ParameterError, match=f"have {whole} or 4 numbers"):
            await embedded(8)

    run(main)


def test_ids_are_embedded_as_the_text_that_they_are_of(model) -> None:
    ids = tuple(model.tokenizer.encode("a cat", add_special_tokens=True))

    async def main() -> None:
        of_text, of_ids = (
            await model.embed(inputs("a cat")),
            await model.embed(EmbedRequest("r", "m", (TokensPart(ids),))),
        )
        np.testing.assert_allclose(of_ids.embeddings, of_text.embeddings, atol=ATOL)
        assert of_ids.prompt_tokens == of_text.prompt_tokens == len(ids)

    run(main)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda ids: ids[1:-1], "between the tokens"),
        (lambda ids: ids[:1], "these 1 ids"),
        (lambda ids: (), "these 0"),
        (lambda ids: (*ids[:-1], 10**9, ids[-1]), "token 1000000000 is none of the model's"),
    ],
)
def test_ids_that_are_no_text_of_the_models_are_refused(model, bad, message) -> None:
    ids = tuple(model.tokenizer.encode("a cat", add_special_tokens=True))

    async def main() -> None:
        with pytest.raises(ParameterError, match=message):
            await model.embed(EmbedRequest("r", "m", (TokensPart(bad(ids)),)))

    run(main)


def test_long_texts_are_cut_where_that_is_asked_and_keep_their_end(model, clip_bundle) -> None:
    longest, words = read_manifest(clip_bundle).dual.max_text_tokens, "word " * 200
    ids = tuple(model.tokenizer.encode(words, add_special_tokens=True))

    async def embedded(part: TextPart | TokensPart, most: int | None) -> EmbedResult:
        return await model.embed(EmbedRequest("r", "m", (part,), truncate_tokens=most))

    async def main() -> None:
        for most, left in ((-1, longest), (longest, longest), (7, 7)):
            kept = TokensPart((*ids[: left - 1], ids[-1]))
            expected = await embedded(kept, None)
            for part in (TextPart(words), TokensPart(ids)):
                found = await embedded(part, most)
                np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=ATOL)
                assert found.prompt_tokens == left
        with pytest.raises(ContextLengthError, match=f"{longest} tokens hold at most"):
            await embedded(TextPart(words), None)
        for wrong in (2, longest + 1):
            with pytest.raises(
                ParameterError, match=f"truncate_prompt_tokens = {wrong}: the model reads 3 to {longest}"
            ):
                await embedded(TextPart(words), wrong)

    run(main)


def test_several_templates_count_by_the_mean_of_their_vectors(model, clip_bundle, image_bytes) -> None:
    labels, templates = ("cat", "dog"), ("a photo of a {}.", "art of the {}.", "{}")
    dims = read_manifest(clip_bundle).dual

    async def main() -> None:
        image = ImagePart(image_bytes(1))
        result = await model.classify(ClassifyRequest("r", "m", (image,), labels, templates))
        means = []
        for label in labels:
            texts = (await model.embed(inputs(*(each.replace("{}", label) for each in templates)))).embeddings
            means.append(texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0)))
        vectors = (await model.embed(inputs(image.data))).embeddings
        logits = vectors @ np.array(means).T * dims.logit_scale
        np.testing.assert_allclose(result.scores, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-3)

    run(main)


def test_classification_is_the_softmax_of_the_scaled_cosines(model, clip_bundle, image_bytes) -> None:
    labels, images = ("cat", "dog", "a red square"), [image_bytes(1), image_bytes(2)]
    dims = read_manifest(clip_bundle).dual

    async def main() -> None:
        result = await model.classify(ClassifyRequest("r", "m", tuple(map(ImagePart, images)), labels))
        texts = (await model.embed(inputs(*(dims.prompt_template.format(label) for label in labels)))).embeddings
        vectors = (await model.embed(inputs(*images))).embeddings
        logits = vectors @ texts.T * dims.logit_scale
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(result.scores, expected, rtol=1e-3)
        np.testing.assert_allclose(result.scores.sum(axis=1), 1, rtol=1e-6)

    run(main)


def test_the_template_stands_around_the_label(model, image_bytes) -> None:
    async def main() -> None:
        image = (ImagePart(image_bytes(1)),)
        templated = await model.classify(ClassifyRequest("r", "m", image, ("cat", "dog"), ("some {} here",)))
        written = await model.classify(ClassifyRequest("r", "m", image, ("some cat here", "some dog here"), ("{}",)))
        np.testing.assert_allclose(templated.scores, written.scores, atol=ATOL)
        braces = await model.classify(ClassifyRequest("r", "m", image, ("{}", "{0}"), ("a {}",)))
        assert np.isfinite(braces.scores).all()

    run(main)


def test_sigmoid_scoring_judges_each_label_by_itself() -> None:
    dims = DualEncoderDims(
        embedding_size=4,
        max_text_tokens=8,
        pad_token_id=0,
        pads_to_max=True,
        scoring="sigmoid",
        logit_scale=10.0,
        logit_bias=-5.0,
    )
    found = scores(np.array([[0.5, 1.0, 0.0]], np.float32), dims)
    np.testing.assert_allclose(found, [[0.5, 1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))]], rtol=1e-6)


def test_requests_that_mean_nothing_are_refused_by_field(model, image_bytes) -> None:
    image = (ImagePart(image_bytes(1)),)
    cases = [
        (model.embed(EmbedRequest("r", "m", ())), ParameterError, "input is empty"),
        (model.embed(inputs("word " * 200)), ContextLengthError, "at most"),
        (model.embed(inputs("fine", b"not an image")), ImageError, "not an image"),
        (model.classify(ClassifyRequest("r", "m", image, ())), ParameterError, "0 labels"),
        (model.classify(ClassifyRequest("r", "m", (), ("cat",))), ParameterError, "0 images"),
        (model.classify(ClassifyRequest("r", "m", image, ("cat",), ("a cat",))), ParameterError, "has no {}"),
    ]

    async def main() -> None:
        for request, kind, message in cases:
            with pytest.raises(kind, match=message):
                await request
        assert (await model.embed(inputs("still here"))).embeddings.shape[0] == 1

    run(main)


def test_more_requests_than_the_limit_are_refused(model) -> None:
    async def main() -> None:
        results = await asyncio.gather(*(model.embed(inputs("text")) for _ in range(11)), return_exceptions=True)
        assert sum(isinstance(result, OverloadedError) for result in results) == 3
        assert model.gauges["num_requests_running"] == 0

    run(main)


def test_raw_vectors_are_the_graphs_and_those_of_tokens_are_refused(model, clip_bundle) -> None:
    async def main() -> None:
        raw = (await model.embed(replace(inputs("a cat"), is_raw=True))).embeddings
        units = (await model.embed(inputs("a cat"))).embeddings
        assert abs(np.linalg.norm(raw) - 1) > 0.1
        np.testing.assert_allclose(raw / np.linalg.norm(raw), units, atol=1e-6)
        with pytest.raises(ParameterError, match="has one vector of each input"):
            await model.embed(replace(inputs("a cat"), granularity="token"))

    run(main)
