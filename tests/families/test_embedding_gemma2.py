"""EmbeddingGemma 2 against transformers' model and processor: one vector of texts and images, smaller and served."""

from __future__ import annotations

import asyncio
import json
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
from bundle.errors import UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings
from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.settings import ApiSettings, EngineSettings

GEOMETRIES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {}),
    (
        {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention"] * 3,
            "per_layer_config": {"2": {"head_dim": 20, "num_key_value_heads": 4}},
            "num_key_value_heads": 1,
            "attention_bias": True,
            "hidden_activation": "silu",
            "sliding_window": 11,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        {"pooling_kernel_size": 2, "head_dim": 20, "standardize": True},
    ),
)
SETTINGS = RuntimeSettings(intra_threads=1)
TEXTS = ["a red bicycle", "b", "what is written on the second page, and by whom?"]


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


IMAGES = [picture(1, 70, 40), picture(2, 30, 33)]
INPUTS: list[tuple[str | None, list[Image.Image]]] = [
    *((text, []) for text in TEXTS),
    *((None, [image]) for image in IMAGES),
    ("a bicycle <|image|> and <|image|>", IMAGES),
]
TURNS = [
    *(Turn("user", (text,)) for text in TEXTS),
    *(Turn("user", (Placeholder.IMAGE,)) for _ in IMAGES),
    Turn("user", ("a bicycle ", Placeholder.IMAGE, " and ", Placeholder.IMAGE)),
]


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


@pytest.fixture(scope="module")
def made(embedding_gemma2: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return checkpoint and bundle of a geometry in a dialect."""
    folder = tmp_path_factory.mktemp("embedding_gemma2")

    def make(number: int, dialect: Any = "contrib") -> tuple[Path, Bundle]:
        checkpoint, bundle = folder / f"{number}", folder / f"{number}-{dialect}"
        if not checkpoint.exists():
            embedding_gemma2.save(checkpoint, embedding_gemma2.config(*GEOMETRIES[number]))
        if not bundle.exists():
            export_checkpoint(checkpoint, bundle, name="tiny", dialect=dialect)
        return checkpoint, open_bundle(bundle)

    return make


@pytest.fixture(scope="module")
def expected(made: Any, embedding_gemma2: ModuleType) -> Any:
    """Return ids and vector that transformers makes of each input, of a geometry: the mean of all states, normed."""
    import torch
    from transformers import EmbeddingGemma2Model

    def make(number: int) -> list[tuple[list[int], np.ndarray]]:
        checkpoint, _ = made(number)
        model, told = EmbeddingGemma2Model.from_pretrained(checkpoint, output_loading_info=True)
        assert not any(told.values()), told
        processor, found = embedding_gemma2.processor(checkpoint), []
        for text, images in INPUTS:
            given = processor(text=None if text is None else [text], images=[images] if images else None)
            batch = {name: torch.as_tensor(np.asarray(each)) for name, each in given.items()}
            with torch.no_grad():
                state = model.eval()(**batch).last_hidden_state[0].mean(0).numpy()
            found.append((batch["input_ids"][0].tolist(), state / np.linalg.norm(state)))
        return found

    return make


@pytest.mark.parametrize(("number", "dialect"), [(0, "contrib"), (0, "portable"), (1, "contrib"), (1, "portable")])
def test_vectors_and_prompts_are_the_references(number: int, dialect: str, made: Any, expected: Any) -> None:
    """Inputs of several lengths run side by side: a token sees none of what is padded behind a shorter one."""
    runner, wanted = EmbedderRunner(made(number, dialect)[1], SETTINGS), expected(number)
    given = [images for _, images in INPUTS]
    prompts = [runner.prompt([turn], images) for turn, images in zip(TURNS, given, strict=True)]
    assert [prompt.prompt.token_ids.tolist() for prompt in prompts] == [ids for ids, _ in wanted]
    found = np.stack([*runner.embed_texts(TEXTS), *runner.embed_images(IMAGES)]).reshape(len(prompts) - 1, -1)
    vectors = np.stack([vector for _, vector in wanted])
    assert found.shape[1] == 48
    assert (1 - (found * vectors[:-1]).sum(-1)).max() < 1e-4
    assert_allclose(found, vectors[:-1], atol=1e-4)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[~np.eye(len(vectors), dtype=bool)]
    assert apart.min() > 0.05  # vectors that hardly differ would agree however wrong


def test_a_server_embeds_texts_images_and_both_with_the_checkpoints_prefixes(made: Any, expected: Any) -> None:
    _, bundle = made(0)
    wanted = [vector for _, vector in expected(0)]
    assert dict(bundle.manifest.embedder.prefixes) == {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
    }
    urls = [{"type": "image_url", "image_url": {"url": _url(image)}} for image in IMAGES]
    text = [{"type": "text", "text": each} for each in ("a bicycle ", " and ")]
    both = {"content": [text[0], urls[0], text[1], urls[1]]}

    async def main() -> None:
        async with LocalClient([bundle.directory], EngineSettings(max_sequences=3, intra_threads=1)) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                body = {"input": [*TEXTS, *urls, both]}
                answer = (await http.post("/v1/embeddings", json=body)).json()
                assert_allclose([each["embedding"] for each in answer["data"]], wanted, atol=1e-4)
                asked = {"input": ["a red bicycle"], "input_type": "query"}
                query = (await http.post("/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
                asked = {"input": ["task: search result | query: a red bicycle"]}
                written = (await http.post("/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
                assert_allclose(query, written, atol=1e-6)
                assert np.abs(np.array(query) - wanted[0]).max() > 0.01

    asyncio.run(asyncio.wait_for(main(), 120))


def test_vectors_of_768_numbers_may_be_cut_as_the_models_card_says(
    embedding_gemma2: ModuleType, tmp_path: Path
) -> None:
    embedding_gemma2.save(tmp_path / "wide", embedding_gemma2.config({"embedding_dim": 768}))
    manifest = export_checkpoint(tmp_path / "wide", tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").manifest.embedder.matryoshka == (512, 256, 128), manifest


@pytest.mark.parametrize(("weights", "least"), [("int8", 0.97), ("int4", 0.5)])
def test_variants_embed_nearly_the_same_and_are_measured(weights: str, least: float, made: Any, tmp_path: Path) -> None:
    """Random weights of gain 2, which multiply any rounding; what had nothing to do with its parent would be near 0."""
    captions = [Captioned(picture(n, 40 + 9 * n, 50), f"number {n}") for n in range(4)]
    evaluation = Evaluation(captions=captions, texts=TEXTS, source="test", no_accuracy="random weights")
    manifest = quantize_bundle(made(0)[1].directory, tmp_path / "variant", weights=weights, evaluation=evaluation)
    measured = {gate.name: gate.value for gate in manifest.gates}
    assert {component.scheme for component in manifest.components.values()} >= {weights}
    for kind in ("image", "text"):
        assert measured[f"cosine_mean/{kind}"] > least, measured


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"vision_config": None}, "vision_config is null: built is EmbeddingGemma 2 with its image tower"),
        ("text_config", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("text_config", {"per_layer_config": {"1": {"head_dim": 24}}}, "one of each for all layers of kind full"),
        ("text_config", {"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ("vision_config", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
    ],
)
def test_what_is_not_built_is_refused(
    part: str, change: dict[str, Any], message: str, embedding_gemma2: ModuleType
) -> None:
    from export.architectures import load_family

    raw = json.loads(json.dumps(embedding_gemma2.config()))
    (raw[part] if part else raw).update(change)
    with pytest.raises(UnsupportedConfigError, match=message):
        load_family(raw)


def _url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()
