"""ColModernVBERT against transformers' model and processor: vectors of every token, smaller and served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.similarity import similarity
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings
from serving.models.embedder import EmbedderModel
from serving.models.pool import PreprocessPool
from serving.protocol import EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

GEOMETRIES: tuple[dict[str, Any], ...] = (
    {},
    {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 4,
        "global_attn_every_n_layers": 3,
        "local_attention": 5,
        "local_rope_theta": 300.0,
    },
)
SETTINGS = RuntimeSettings(intra_threads=1)
TEXTS = ["a red bicycle", "b", "what is written on the second page, and by whom?"]


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


IMAGES = [picture(1, 70, 40), picture(2, 30, 33)]


@pytest.fixture(scope="module")
def made(colmodernvbert: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return checkpoint and bundle of a geometry in a dialect."""
    folder = tmp_path_factory.mktemp("colmodernvbert")

    def make(number: int, dialect: Any = "contrib") -> tuple[Path, Bundle]:
        checkpoint, bundle = folder / f"{number}", folder / f"{number}-{dialect}"
        if not checkpoint.exists():
            colmodernvbert.save(checkpoint, **GEOMETRIES[number])
        if not bundle.exists():
            export_checkpoint(checkpoint, bundle, name="tiny", dialect=dialect)
        return checkpoint, open_bundle(bundle)

    return make


@pytest.fixture(scope="module")
def expected(made: Any) -> Any:
    """Return ids and vectors that transformers makes of images and texts, of a geometry."""
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, ColModernVBertForRetrieval, ColModernVBertProcessor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def make(number: int) -> list[tuple[list[int], np.ndarray]]:
        checkpoint, _ = made(number)
        model, found = ColModernVBertForRetrieval.from_pretrained(checkpoint, output_loading_info=True)
        assert not any(found.values()), found
        images = Idefics3ImageProcessorPil.from_pretrained(checkpoint)
        processor = ColModernVBertProcessor(images, AutoTokenizer.from_pretrained(checkpoint), image_seq_len=4)
        batches = [processor.process_images([each]) for each in IMAGES]
        batches += [processor.process_queries([each]) for each in TEXTS]
        found = []
        for batch in batches:
            with torch.no_grad():
                vectors = model.eval()(**{name: torch.as_tensor(batch[name]) for name in batch}).embeddings[0].numpy()
            found.append((batch["input_ids"][0].tolist(), vectors))
        return found

    return make


@pytest.mark.parametrize(("number", "dialect"), [(0, "contrib"), (0, "portable"), (1, "contrib"), (1, "portable")])
def test_vectors_are_the_references_of_its_processors_tokens(
    number: int, dialect: str, made: Any, expected: Any
) -> None:
    """Inputs of several lengths run side by side: a token sees none of what is padded behind a shorter one."""
    _, bundle = made(number, dialect)
    runner = EmbedderRunner(bundle, SETTINGS)
    wanted = expected(number)
    found = [*runner.embed_images(IMAGES), *runner.embed_texts(TEXTS)]
    for (ids, vectors), own in zip(wanted, found, strict=True):
        assert own.shape == vectors.shape == (len(ids), 16)
        assert (1 - (own * vectors).sum(axis=-1)).max() < 1e-4
        assert np.ptp(vectors, axis=0).max() > 0.1  # tokens that hardly differ would agree however wrong


def test_prompts_are_the_processors_token_by_token(made: Any, expected: Any) -> None:
    from bundle.prompt import Placeholder, Turn

    runner = EmbedderRunner(made(0)[1], SETTINGS)
    prompts = [runner.prompt([Turn("user", (Placeholder.IMAGE,))], [image]) for image in IMAGES]
    prompts += [runner.prompt([Turn("user", (text,))], []) for text in TEXTS]
    assert [prompt.prompt.token_ids.tolist() for prompt in prompts] == [ids for ids, _ in expected(0)]


def test_served_vectors_rank_by_late_interaction_as_the_references(made: Any, expected: Any) -> None:
    def png(image: Image.Image) -> bytes:
        file = BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    async def main() -> None:
        settings = EngineSettings(max_sequences=3, intra_threads=1)
        pool = PreprocessPool(settings)
        model = EmbedderModel(made(0)[1], settings, pool)
        model.start()
        try:
            parts = (*(ImagePart(png(image)) for image in IMAGES), *map(TextPart, TEXTS))
            found = (await model.embed(EmbedRequest("r", "m", parts))).embeddings
        finally:
            model.close()
            pool.close()
        vectors = [each for _, each in expected(0)]
        for query in range(2, len(found)):
            own = [similarity(found[query], found[page]) for page in range(2)]
            wanted = [(vectors[query] @ vectors[page].T).max(axis=1).sum() for page in range(2)]
            np.testing.assert_allclose(own, wanted, atol=1e-3)  # sums over tens of tokens

    asyncio.run(asyncio.wait_for(main(), 60))


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


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
        ("text_config", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("text_config", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("", {"pixel_shuffle_factor": 3}, "scale_factor 3 does not divide the 4 patches"),
    ],
)
def test_what_is_not_built_is_refused(
    part: str, change: dict[str, Any], message: str, colmodernvbert: ModuleType
) -> None:
    from export.architectures import load_family

    raw = colmodernvbert.config()
    target = raw["vlm_config"][part] if part else raw["vlm_config"]
    target.update(change)
    with pytest.raises(UnsupportedConfigError, match=message):
        load_family(raw)
