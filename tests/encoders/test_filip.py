"""FILIP: vectors of patches and tokens, held to a reference written from the paper on transformers' towers of CLIP."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.directory import Bundle, open_bundle
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.one_embedding import DualEncoderRunner
from runtime.settings import RuntimeSettings
from serving.api.app import create_app
from serving.models import embedding
from serving.models.client import LocalClient
from serving.models.embedding import EmbeddingModel
from serving.models.pool import PreprocessPool
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart
from serving.settings import ApiSettings, EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
TOLERANCE = 5e-5  # of unit vectors: float32 sums in another order


@dataclass(frozen=True)
class Reference:
    """What section 3.1 makes of images and texts: unit vectors of patches, of tokens, and the scale of scores."""

    images: list[np.ndarray]
    texts: list[np.ndarray]
    scale: float

    def similarity_of(self, image: int, text: int) -> float:
        """Return equation 2: the mean, over patches, of the largest cosine with a token."""
        cosines = np.einsum("pe,te->pt", self.images[image], self.texts[text])
        return float(np.mean([max(row) for row in cosines]))


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


@pytest.fixture(scope="module", params=[0, 1], ids=["nine-patches", "36-patches"])
def checkpoint(
    request: pytest.FixtureRequest, family_of: Any, encoder_files: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of CLIP's, told to be FILIP's."""
    clip = family_of("clip")
    config = clip.geometries()[0]
    if request.param:
        config["vision_config"] |= {"image_size": 50, "patch_size": 8, "hidden_act": "gelu"}
    folder = tmp_path_factory.mktemp("filip") / "checkpoint"
    encoder_files.save_model(folder, config, {**config, "model_type": "filip"})
    clip.save_processor(folder, config)
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint: Path, encoder_files: ModuleType) -> Reference:
    import torch
    from transformers import CLIPConfig, CLIPModel

    config = json.loads((checkpoint / "config.json").read_text())
    clip, found = CLIPModel.from_pretrained(
        checkpoint, config=CLIPConfig.from_dict({**config, "model_type": "clip"}), output_loading_info=True
    )
    assert not any(found.values()), found
    inputs = encoder_files.Apart(checkpoint)(
        [image.convert("RGB") for image in encoder_files.pictures()],
        encoder_files.TEXTS,
        padding=True,
        return_tensors="pt",
    )
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        patches = clip.eval().vision_model(inputs["pixel_values"]).last_hidden_state[:, 1:]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(patches))
        tokens = clip.text_model(inputs["input_ids"], attention_mask=mask.long()).last_hidden_state
        tokens = clip.text_projection(tokens)
    units = [torch.nn.functional.normalize(each, dim=-1) for each in (patches, tokens)]
    texts = [row[seen].numpy() for row, seen in zip(units[1], mask, strict=True)]
    return Reference(list(units[0].numpy()), texts, float(clip.logit_scale.detach().exp()))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(checkpoint, tmp_path_factory.mktemp("filip"), "contrib")


def exported(checkpoint: Path, folder: Path, dialect: Any) -> Bundle:
    export_checkpoint(checkpoint, folder / "bundle", name="tiny", dialect=dialect)
    return open_bundle(folder / "bundle")


def assert_same(found: Any, wanted: list[np.ndarray]) -> None:
    for own, other in zip(found, wanted, strict=True):
        assert own.shape == other.shape
        assert_allclose(own, other, atol=TOLERANCE)


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_every_patch_and_token_has_the_references_vector(
    checkpoint: Path, reference: Reference, encoder_files: ModuleType, dialect: str, tmp_path: Path
) -> None:
    runner = DualEncoderRunner(exported(checkpoint, tmp_path, dialect), SETTINGS)
    assert_same(runner.embed_images(encoder_files.pictures()), reference.images)
    assert_same(runner.embed_texts(encoder_files.TEXTS), reference.texts)
    assert len({len(own) for own in reference.texts}) > 2  # padding would show


def test_served_vectors_are_the_references_and_images_are_classified_by_their_nearest_tokens(
    bundle: Bundle, reference: Reference, encoder_files: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, texts = encoder_files.pictures(), encoder_files.TEXTS
    sent = tuple(ImagePart(_png(image)) for image in pictures)
    threads, own = set[str](), embedding.similarity

    def noted(image: np.ndarray, text: np.ndarray) -> float:
        threads.add(threading.current_thread().name)
        return own(image, text)

    monkeypatch.setattr(embedding, "similarity", noted)
    monkeypatch.setattr(embedding, "_PIECE_PAIRS", 2)

    async def main() -> None:
        settings = EngineSettings(max_sequences=3, intra_threads=1)
        pool = PreprocessPool(settings)
        model = EmbeddingModel(bundle, settings, pool)
        model.start()
        try:
            mixed = (TextPart(texts[0]), *sent, *map(TextPart, texts[1:]))
            embedded = await model.embed(EmbedRequest("r", "m", mixed))
            scored = await model.classify(ClassifyRequest("r", "m", sent, tuple(texts), ("{}",)))
            doubled = await model.classify(ClassifyRequest("r", "m", sent, tuple(texts[:2]), ("{}", "{} a")))
        finally:
            model.close()
            pool.close()
        assert_same(embedded.embeddings, [reference.texts[0], *reference.images, *reference.texts[1:]])
        assert_allclose(scored.scores, _probabilities(reference, len(texts)), atol=2e-3)
        assert not np.allclose(doubled.scores, _probabilities(reference, 2), atol=2e-3)  # the second template counts
        assert all(thread.startswith("preprocess-text") for thread in threads), threads  # the loop serves others
        assert threads

    asyncio.run(main())


def test_routes_rank_by_late_interaction_and_answer_several_vectors(
    bundle: Bundle, reference: Reference, encoder_files: ModuleType
) -> None:
    """A query's own vectors count: each by the nearest of the document."""
    images = ["data:image/png;base64," + b64encode(_png(image)).decode() for image in encoder_files.pictures()]
    text = encoder_files.TEXTS[0]
    wanted = [float((reference.texts[0] @ image.T).max(axis=1).sum()) for image in reference.images]

    async def main() -> None:
        async with LocalClient([bundle.directory], EngineSettings(max_sequences=3, intra_threads=1)) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                documents = [{"image": image} for image in images]
                ranked = (await http.post("/v1/rerank", json={"query": text, "documents": documents})).json()
                embedded = (await http.post("/v1/embeddings", json={"model": "tiny", "input": text})).json()
                asked = {"model": "tiny", "input": text}
                pooled = (await http.post("/pooling", json={**asked, "task": "token_embed"})).json()
                refused = (await http.post("/pooling", json={**asked, "task": "embed"})).json()
        found = {each["index"]: each["relevance_score"] for each in ranked["results"]}
        assert_allclose([found[number] for number in range(len(wanted))], wanted, rtol=1e-4)
        assert_allclose(embedded["data"][0]["embeddings"], reference.texts[0], atol=TOLERANCE)
        assert_allclose(pooled["data"][0]["data"], reference.texts[0], atol=TOLERANCE)
        assert "tiny has a vector for every token; ask for token_embed" in refused["error"]["message"]

    asyncio.run(main())


def test_int8_passes_its_gate(bundle: Bundle, encoder_files: ModuleType, tmp_path: Path) -> None:
    captions = [Captioned(*pair) for pair in zip(encoder_files.pictures(), encoder_files.TEXTS, strict=False)]
    evaluation = Evaluation(captions=captions, texts=encoder_files.TEXTS, source="tiny", no_accuracy="they are few")
    manifest = quantize_bundle(bundle.directory, tmp_path / "int8", weights="int8", evaluation=evaluation)
    gates = {gate.name: gate.passed for gate in manifest.gates}
    assert {"cosine_mean/image", "cosine_mean/text"} <= gates.keys()
    assert all(gates.values()), gates
    assert manifest.dual.vectors == "tokens"


def _probabilities(reference: Reference, num_texts: int) -> np.ndarray:
    near = [[reference.similarity_of(i, t) for t in range(num_texts)] for i in range(len(reference.images))]
    weights = np.exp(reference.scale * (np.array(near) - np.max(near, axis=1, keepdims=True)))
    return weights / weights.sum(axis=1, keepdims=True)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
