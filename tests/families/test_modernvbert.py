"""ModernVBERT's single vectors against transformers' model, pooled as colpali_engine 0.3.18 does, and its processor."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.numpy import load_file, save_file

from bundle.directory import Bundle, open_bundle
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings
from serving.models.embedder import EmbedderModel
from serving.models.pool import PreprocessPool
from serving.protocol import EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
TEXTS = ["a red bicycle", "b", "what is written on the second page, and by whom?"]
VISUAL = "<|begin_of_text|>User:<image>Describe the image.<end_of_utterance>\nAssistant:"
ODD = {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 4, "local_attention": 5}
GEOMETRIES: tuple[dict[str, Any], ...] = ({}, {**ODD, "global_attn_every_n_layers": 3})


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8))


IMAGES = [picture(1, 70, 40), picture(2, 30, 33)]


@pytest.fixture(scope="module")
def made(colmodernvbert: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return checkpoint and bundle of a geometry in a dialect."""
    folder = tmp_path_factory.mktemp("modernvbert")

    def make(number: int, dialect: Any = "contrib") -> tuple[Path, Bundle]:
        checkpoint, bundle = folder / f"{number}", folder / f"{number}-{dialect}"
        if not checkpoint.exists():
            raw = colmodernvbert.save(checkpoint, **GEOMETRIES[number])
            _rewrite(checkpoint, raw["vlm_config"], is_nested=bool(number))
        if not bundle.exists():
            export_checkpoint(checkpoint, bundle, name="tiny", dialect=dialect)
        return checkpoint, open_bundle(bundle)

    return make


def _rewrite(checkpoint: Path, vlm: dict[str, Any], *, is_nested: bool) -> None:
    """Write the model as colpali_engine does, under `model`; nested: as one of its checkpoints has it."""
    config = {**vlm, "architectures": ["BiModernVBert"]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    weights = load_file(checkpoint / "model.safetensors")
    renamed = {
        key.replace("vlm.", "model."): value for key, value in weights.items() if not key.startswith("embedding_proj")
    }
    if is_nested:
        tower = "model.vision_model."
        renamed = {key.replace(tower, f"{tower}vision_model."): value for key, value in renamed.items()}
        renamed["lm_head.bias"] = np.zeros(3, np.float32)
    save_file(renamed, checkpoint / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def expected(made: Any) -> Any:
    """Return ids and unit vector that the reference makes of images and texts, of a geometry."""
    import torch
    from transformers import AutoTokenizer, Idefics3Processor, ModernVBertConfig, ModernVBertModel
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def make(number: int) -> list[tuple[list[int], np.ndarray]]:
        checkpoint, _ = made(number)
        model = ModernVBertModel(ModernVBertConfig.from_pretrained(checkpoint)).eval()
        stored = load_file(checkpoint / "model.safetensors")
        keys = {key.replace("vision_model.vision_model.", "vision_model."): value for key, value in stored.items()}
        state = {key.removeprefix("model."): torch.from_numpy(value) for key, value in keys.items()}
        told = model.load_state_dict({key: each for key, each in state.items() if key != "lm_head.bias"}, strict=False)
        # SigLIP's pooling is part of transformers' tower, and nothing reads it
        assert not told.unexpected_keys
        assert all(".head." in key for key in told.missing_keys), told
        images = Idefics3ImageProcessorPil.from_pretrained(checkpoint)
        processor = Idefics3Processor(images, AutoTokenizer.from_pretrained(checkpoint), image_seq_len=4)
        batches = [processor(text=[VISUAL], images=[[each]], return_tensors="pt") for each in IMAGES]
        batches += [processor(text=[each], return_tensors="pt") for each in TEXTS]
        found = []
        for batch in batches:
            with torch.no_grad():
                pooled = model(**batch).last_hidden_state[0].mean(0).numpy()
            found.append((batch["input_ids"][0].tolist(), pooled / np.linalg.norm(pooled)))
        return found

    return make


@pytest.mark.parametrize(("number", "dialect"), [(0, "contrib"), (0, "portable"), (1, "contrib"), (1, "portable")])
def test_vectors_and_prompts_are_the_references(number: int, dialect: str, made: Any, expected: Any) -> None:
    runner, wanted = EmbedderRunner(made(number, dialect)[1], SETTINGS), expected(number)
    prompts = [runner.prompt([Turn("user", (Placeholder.IMAGE,))], [image]) for image in IMAGES]
    prompts += [runner.prompt([Turn("user", (text,))], []) for text in TEXTS]
    assert [prompt.prompt.token_ids.tolist() for prompt in prompts] == [ids for ids, _ in wanted]
    found = np.stack([*runner.embed_images(IMAGES), *runner.embed_texts(TEXTS)]).reshape(len(wanted), -1)
    vectors = np.stack([vector for _, vector in wanted])
    assert (1 - (found * vectors).sum(-1)).max() < 1e-4
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[~np.eye(len(vectors), dtype=bool)]
    assert apart.min() > 0.05  # vectors that hardly differ would agree however wrong


def test_int8_variants_embed_nearly_the_same_and_serve(made: Any, expected: Any, tmp_path: Path) -> None:
    """Random weights of gain 2, which multiply any rounding."""
    evaluation = Evaluation(texts=TEXTS, source="test", no_accuracy="random weights")
    manifest = quantize_bundle(made(0)[1].directory, tmp_path / "int8", weights="int8", evaluation=evaluation)
    measured = {gate.name: gate.value for gate in manifest.gates}
    assert measured["cosine_mean/text"] > 0.97, measured

    async def served(folder: Path) -> np.ndarray:
        settings = EngineSettings(max_sequences=3, intra_threads=1)
        pool = PreprocessPool(settings)
        model = EmbedderModel(open_bundle(folder), settings, pool)
        model.start()
        try:
            parts = (*(ImagePart(_png(image)) for image in IMAGES), *map(TextPart, TEXTS))
            return np.asarray((await model.embed(EmbedRequest("r", "m", parts))).embeddings)
        finally:
            model.close()
            pool.close()

    vectors = np.stack([vector for _, vector in expected(0)])
    found = asyncio.run(asyncio.wait_for(served(made(0)[1].directory), 60)).reshape(vectors.shape)
    assert_allclose(found, vectors, atol=1e-4)
    smaller = asyncio.run(asyncio.wait_for(served(tmp_path / "int8"), 60)).reshape(vectors.shape)
    assert (smaller * vectors).sum(-1).min() > 0.9


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
