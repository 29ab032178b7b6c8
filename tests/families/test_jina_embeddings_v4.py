"""jina-embeddings-v4: an adapter for each task, chosen by request, against transformers' model with each merged."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bundle.directory import Bundle, open_bundle
from bundle.errors import CheckpointError, ParameterError, UnsupportedConfigError
from bundle.summary import summary
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.filled_prompt import FilledPrompt
from runtime.prompt_embedder import PromptEmbedder
from runtime.settings import RuntimeSettings
from serving import oneshot
from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.models.embedder import EmbedderModel
from serving.models.pool import PreprocessPool
from serving.protocol import EmbedInput, EmbedRequest, ImagePart, JoinedPart, TextPart
from serving.settings import ApiSettings, EngineSettings

TASKS = ("retrieval", "text-matching", "code")
LATE_SIZE, RANK, ALPHA = 16, 4, 8
SETTINGS = EngineSettings(max_sequences=4, intra_threads=1)
TEXTS = ["a red bicycle", "def add(a, b): return a + b", "x"]
IMAGE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 70, 3), np.uint8))
IMAGE_PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"


def png(image: Image.Image) -> ImagePart:
    written = BytesIO()
    image.save(written, "PNG")
    return ImagePart(written.getvalue())


@pytest.fixture(scope="module", params=[0, 1])
def checkpoint(request: Any, families: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each odd geometry: Qwen2.5-VL's weights, a projection, and adapters in a folder."""
    family, folder = families["qwen2_5_vl"], tmp_path_factory.mktemp("jina") / "checkpoint"
    config = list(family.geometries().values())[request.param]
    family.save(folder, config)
    text, rng = config["text_config"], np.random.default_rng(3)
    weights, size = load_file(folder / "model.safetensors"), text["hidden_size"]
    projection = {"weight": rng.standard_normal((LATE_SIZE, size)), "bias": rng.standard_normal(LATE_SIZE)}
    weights |= {f"multi_vector_projector.{name}": each.astype(np.float32) for name, each in projection.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    made = {"single_vector_pool_strategy": "mean", "multi_vector_projector_dim": LATE_SIZE, "truncate_dim": None}
    more = {"task_names": TASKS, "matryoshka_dims": [8, 16, size], "architectures": ["JinaEmbeddingsV4Model"]}
    (folder / "config.json").write_text(json.dumps({**config, **made, **more}))
    save_adapters(folder / "adapters", weights, rng)
    return folder


def save_adapters(folder: Path, weights: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Write an adapter for each task as the published code's module names them, of all that it changes."""
    folder.mkdir()
    changes = {}
    for name, weight in weights.items():
        if "visual." in name or (not name.endswith("_proj.weight") and name != "multi_vector_projector.weight"):
            continue
        stem = "base_model.model." + name.removesuffix(".weight").replace("model.layers", "model.language_model.layers")
        for task in TASKS:
            for part, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
                changes[f"{stem}.lora_{part}.{task}.weight"] = 0.15 * rng.standard_normal(shape).astype(np.float32)
    save_file(changes, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "exclude_modules": ".*visual.*"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Reference:
    """Transformers' Qwen2.5-VL with a task's adapter merged by a formula of this test's own."""

    def __init__(self, families: dict[str, Any], checkpoint: Path, folder: Path, task: str) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(checkpoint / "model.safetensors")
        changes = load_file(checkpoint / "adapters" / "adapter_model.safetensors")
        for name in list(weights):
            key = name.removesuffix(".weight").replace("model.layers", "model.language_model.layers")
            down, up = (changes.get(f"base_model.model.{key}.lora_{part}.{task}.weight") for part in "AB")
            if down is not None and up is not None:
                weights[name] = weights[name] + ALPHA / RANK * up @ down
        self.projection = [weights.pop(f"multi_vector_projector.{name}") for name in ("weight", "bias")]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        self.model, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values()), found
        self.processor = families["qwen2_5_vl"].processor(folder)

    def vectors(self, text: str, image: Image.Image | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return [D] and [T, M], as `get_single_vector_embeddings` and `get_multi_vector_embeddings` make them."""
        import torch

        inputs = self.processor(text=[text], images=None if image is None else [image], return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            states = self.model.eval()(**inputs, output_hidden_states=True).hidden_states[-1][0].numpy()
        start, end = (0, len(ids)) if image is None else (ids.index(261), ids.index(262) + 1)
        weight, bias = self.projection
        return unit(states[start:end].mean(axis=0)), unit(states @ weight.T + bias)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.fixture(scope="module", params=["contrib", "portable"])
def bundle(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("jina") / "bundle"
    export_checkpoint(checkpoint, folder, name="jina", dialect=request.param)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[EmbedderModel]:
    pool = PreprocessPool(SETTINGS)
    model = EmbedderModel(bundle, SETTINGS, pool)
    model.start()
    yield model
    model.close()
    pool.close()


def ask(*inputs: str | EmbedInput, **options: Any) -> EmbedRequest:
    return EmbedRequest(
        "r", "jina", tuple(TextPart(each) if isinstance(each, str) else each for each in inputs), **options
    )


def together(model: EmbedderModel, *asked: EmbedRequest) -> list[Any]:
    """Return the vectors of requests that wait at once, and so run in one batch where their lengths allow it."""

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(model.embed(each) for each in asked)))

    return [found.embeddings for found in asyncio.run(asyncio.wait_for(all_of_them(), 60))]


def test_each_request_has_the_vectors_of_its_tasks_adapter_whoever_is_beside_it(
    families: dict[str, Any], checkpoint: Path, model: EmbedderModel, tmp_path: Path
) -> None:
    asked, expected = [], []
    for task in TASKS:
        reference = Reference(families, checkpoint, tmp_path / task, task)
        document = "Query: " if task == "text-matching" else "Passage: "
        for kind, prefix in (("query", "Query: "), ("document", document)):
            kinds = (kind,) * len(TEXTS)
            asked += [ask(*TEXTS, task=task, input_types=kinds)]
            asked += [ask(*TEXTS, task=task, input_types=kinds, granularity="token")]
            pairs = [reference.vectors(prefix + text) for text in TEXTS]
            expected += [[single for single, _ in pairs], [several for _, several in pairs]]
        asked += [ask(png(IMAGE), task=task), ask(png(IMAGE), task=task, granularity="token")]
        expected += [[each] for each in reference.vectors(IMAGE_PROMPT, IMAGE)]
    for found, wanted in zip(together(model, *asked), expected, strict=True):
        for own, other in zip(found, wanted, strict=True):
            assert own.shape == other.shape
            assert np.max(1 - (own * other).sum(axis=-1)) < 1e-4
    of_tasks = [found[0] for found in together(model, *(ask(TEXTS[0], task=task) for task in TASKS))]
    assert max(of_tasks[0] @ of_tasks[1], of_tasks[0] @ of_tasks[2], of_tasks[1] @ of_tasks[2]) < 0.999


def test_a_bundle_says_which_tasks_there_are(bundle: Bundle) -> None:
    told = "\n".join(str(line) for line in summary(bundle.directory, bundle.manifest))
    assert "chooses, the first where it says none: retrieval, text-matching, code" in told
    assert f"or one of {LATE_SIZE} numbers for each token" in told


def test_nothing_said_is_the_first_task_and_a_query(model: EmbedderModel) -> None:
    plain, said = together(model, ask("x"), ask("x", task="retrieval", input_types=("query",)))
    np.testing.assert_allclose(plain, said, atol=1e-6)


def test_the_command_says_the_task_and_what_inputs_are_as_requests_do(bundle: Bundle, model: EmbedderModel) -> None:
    for said, kind in (("code.query", "query"), ("code.passage", "document")):
        found = asyncio.run(oneshot.embed(bundle.directory, (TextPart("x"),), 1, said)).embeddings
        (asked,) = together(model, ask("x", task="code", input_types=(kind,)))
        np.testing.assert_allclose(found, asked, atol=1e-6)


def test_vectors_are_cut_where_there_is_one_of_an_input(model: EmbedderModel) -> None:
    whole, cut = together(model, ask("x"), ask("x", dimensions=8))
    np.testing.assert_allclose(cut[0], unit(whole[0][:8]), atol=1e-6)
    with pytest.raises(ParameterError, match="several vectors of one input are not cut"):
        together(model, ask("x", dimensions=8, granularity="token"))


def test_other_tasks_are_refused_by_name(model: EmbedderModel) -> None:
    with pytest.raises(ParameterError, match="task 'clustering': jina has retrieval, text-matching, code"):
        together(model, ask("x", task="clustering"))


def test_texts_and_images_together_follow_one_another(model: EmbedderModel) -> None:
    (found,) = together(model, ask(JoinedPart((png(IMAGE), TextPart("a bicycle")))))
    assert found.shape[0] == 1


def test_an_adapter_of_no_task_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "task_names": ["retrieval", "clustering"]}))
    with pytest.raises(CheckpointError, match="holds no change of the task clustering"):
        export_checkpoint(folder, tmp_path / "bundle")
    (folder / "config.json").write_text(json.dumps({**config, "single_vector_pool_strategy": "last"}))
    with pytest.raises(UnsupportedConfigError, match="single_vector_pool_strategy"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_a_served_request_chooses_the_task_as_jinas_clients_write_it(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "bundle", name="jina")

    async def talk() -> list[Any]:
        async with LocalClient([tmp_path / "bundle"], SETTINGS) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                ask_for = [
                    {"task": "code.passage"},
                    {"task": "code", "input_type": "document"},
                    {"task": "code.query"},
                    {"task": "code", "return_multivector": True},
                    {"task": "clustering"},
                    {"task": "code.query", "input_type": "document"},
                ]
                bodies = [{"model": "jina", "input": [TEXTS[1]], **each} for each in ask_for]
                answers = [await http.post("/v1/embeddings", json=body) for body in bodies]
                ranked = {"model": "jina", "query": "x", "documents": TEXTS, "task": "code"}
                answers.append(await http.post("/v1/rerank", json=ranked))
                answers.append(await http.get("/v1/models"))
                return [(answer.status_code, answer.json()) for answer in answers]

    passage, document, query, several, unknown, contradicted, ranked, models = asyncio.run(talk())
    first, second, third = ([each["embedding"] for each in body["data"]] for _, body in (passage, document, query))
    assert first == second != third
    assert np.shape(several[1]["data"][0]["embeddings"])[1] == LATE_SIZE
    assert [status for status, _ in (unknown, contradicted, ranked)] == [400, 400, 200]
    assert "has retrieval, text-matching, code" in unknown[1]["error"]["message"]
    assert models[1]["data"][0]["embedding_tasks"] == list(TASKS)


@pytest.mark.parametrize(("weights", "least"), [("int8", 0.9), ("int4", 0.5)])
def test_variants_keep_every_adapter(checkpoint: Path, tmp_path: Path, weights: str, least: float) -> None:
    """Random weights, whose changes are as large as what they change; beside them two roundings more than usual."""
    export_checkpoint(checkpoint, tmp_path / "parent", name="jina")
    evaluation = Evaluation(captions=(), texts=TEXTS, source="test", no_accuracy="random weights")
    quantize_bundle(tmp_path / "parent", tmp_path / "variant", weights=weights, evaluation=evaluation)
    found = []
    for name in ("parent", "variant"):
        embedder = PromptEmbedder(open_bundle(tmp_path / name, allow_ungated=True), RuntimeSettings(intra_threads=1))
        prompts = [FilledPrompt.of_ids(np.arange(3, 15)) for _ in TASKS]
        prompts = [replace(prompt, adapter=number) for number, prompt in enumerate(prompts)]
        found.append([*embedder.embed(prompts), *(unit(each) for each in embedder.raw(prompts, "tokens"))])
    for parent, variant in zip(*found, strict=True):
        assert (parent * variant).sum(axis=-1).mean() > least
