"""Towers that embed images and read no texts: transformers' pixels and vectors, int8 by its gate, served, searched."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from typer.testing import CliRunner

from bundle.directory import Bundle, open_bundle
from bundle.errors import QuantizationError, TaskError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.manifest import Manifest
from commands.app import app
from export.exporter import export_checkpoint
from loadtests.latency import BenchmarkPlan, run_benchmark
from quant.comparison.comparison import compare_bundles
from quant.evaluation.gate_samples import read_samples
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.image_runner import ImageRunner
from runtime.settings import RuntimeSettings
from serving.api.app import create_app
from serving.api.docs import examples
from serving.models.client import LocalClient
from serving.protocol import (
    DetokenizeRequest,
    EmbedRequest,
    ImagePart,
    JoinedPart,
    ModelCard,
    TextPart,
    TokenizeRequest,
)
from serving.settings import ApiSettings, EngineSettings

MAX_COSINE_DISTANCE = 1e-4
TOLERANCE = 5e-5
DINO = {"model_type": "dinov2", "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 2, "patch_size": 12}
VIT = {"model_type": "vit", "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "patch_size": 12}
VIT |= {"intermediate_size": 52, "image_size": 36}
SQUARE = {"height": 36, "width": 36}
CROPPED = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": SQUARE}
STRETCHED = {
    "image_processor_type": "ViTImageProcessor",
    "size": SQUARE,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
# of RAD-DINO: one mean and one deviation for all colours
RADIOGRAPHS = CROPPED | {"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3}
# of DINOv3, as its files say it; the class resizes real numbers by torchvision, which is not here
WHOLE = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, "resample": 2, "do_center_crop": None}
WHOLE |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "crop_size": None, "device": None}
REGISTERS = DINO | {"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
DINO_3 = {"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], "hidden_size": 48, "num_attention_heads": 3}
DINO_3 |= {"num_hidden_layers": 2, "patch_size": 12, "intermediate_size": 52, "num_register_tokens": 4}
AIM = {"model_type": "aimv2_vision_model", "architectures": ["Aimv2VisionModel"], "hidden_size": 40}
AIM |= {"num_attention_heads": 5, "num_hidden_layers": 2, "patch_size": 12, "image_size": 36, "intermediate_size": 52}
CLIPS = {**CROPPED, "image_processor_type": "CLIPImageProcessor"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aimv2": (AIM | {"use_head": False}, CLIPS),
    "aimv2-head": (AIM | {"qkv_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}, CLIPS),
    "dinov2": (DINO | {"architectures": ["Dinov2Model"], "image_size": 36, "mlp_ratio": 2}, RADIOGRAPHS),
    "dinov2-resampled": (
        DINO | {"architectures": ["Dinov2ForImageClassification"], "image_size": 60, "use_mask_token": False},
        CROPPED,
    ),
    "dinov2-giant": (DINO | {"architectures": ["Dinov2Model"], "image_size": 36, "use_swiglu_ffn": True}, CROPPED),
    "dinov2-registers": (REGISTERS | {"image_size": 84, "num_register_tokens": 3}, CROPPED),
    "dinov2-registers-gated": (REGISTERS | {"image_size": 24, "use_swiglu_ffn": True, "mlp_ratio": 3}, CROPPED),
    "dinov3": (DINO_3, WHOLE),
    "dinov3-gated": (
        DINO_3
        | {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 1, "rope_theta": 40.0}
        | {"key_bias": True, "query_bias": False, "mlp_bias": False, "image_size": 60},
        WHOLE | {"size": {"height": 24, "width": 48}},
    ),
    "vit": (VIT | {"architectures": ["ViTModel"]}, STRETCHED),
    "vit-labels": (VIT | {"architectures": ["ViTForImageClassification"], "qkv_bias": False}, STRETCHED),
}
REFUSED = [
    ("aimv2", {"is_native": True}, {}, "is_native is true"),
    ("dinov2", {"qkv_bias": False}, {}, "qkv_bias is False"),
    ("dinov3", {"num_attention_heads": 8}, {}, "heads of 48 / 8 numbers: built are square patches"),
    (
        "dinov3",
        {},
        {"size": {"height": 36, "width": 40}},
        "images of 36 x 40 pixels, and the tower takes whole patches",
    ),
    ("vit", {"num_channels": 1}, {}, "num_channels is 1"),
    ("vit", {}, {"size": {"height": 48, "width": 48}}, r"images of \(48, 48\) pixels, the vision tower takes 36"),
]


@dataclass(frozen=True)
class Seen:
    image: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Sample:
    """A tiny model: its checkpoint, where its bundles go, and the images that are shown to it."""

    checkpoint: Path
    made: Path
    pictures: list[Image.Image]

    def bundle(self, dialect: str = "contrib") -> Bundle:
        folder = self.made / dialect
        if not folder.exists():
            export_checkpoint(self.checkpoint, folder, name="eye", dialect=dialect)
        return open_bundle(folder)

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        """Of each picture [3, height, width], by transformers' processor."""
        import transformers

        settings = json.loads((self.checkpoint / "preprocessor_config.json").read_text())
        if settings["image_processor_type"].startswith("DINOv3"):
            processor = transformers.ViTImageProcessorPil(**settings)
        else:
            processor = transformers.AutoImageProcessor.from_pretrained(self.checkpoint, backend="pil")
        seen = (image.convert("RGB") for image in self.pictures)
        return [np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0]) for image in seen]

    @cached_property
    def wanted(self) -> np.ndarray:
        """[I, E] of unit length: the normed class token; of AIMv2 its head's row, or the mean of patches."""
        import torch
        import transformers

        model = transformers.AutoModel.from_pretrained(self.checkpoint).eval()
        with torch.no_grad():
            given = model(torch.from_numpy(np.stack(self.pixels)))
        if model.config.model_type == "aimv2_vision_model":
            pooled = given.last_hidden_state.mean(1) if given.pooler_output is None else given.pooler_output
        else:
            pooled = given.last_hidden_state[:, 0]
        hidden = pooled.numpy()
        return hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def samples(encoder_files: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    made = {}
    for name, (config, settings) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        encoder_files.save_model(folder / "checkpoint", config)
        encoder_files.write_json(folder / "checkpoint" / "preprocessor_config.json", settings)
        made[name] = Sample(folder / "checkpoint", folder, encoder_files.pictures())
    return made


@pytest.fixture(params=CASES)
def sample(request: pytest.FixtureRequest, samples: dict[str, Sample]) -> Sample:
    return samples[request.param]


@pytest.fixture
def folder(samples: dict[str, Sample], tmp_path: Path) -> Path:
    """A folder of the pictures."""
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(samples["vit"].pictures):
        image.save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_images_are_embedded_as_by_transformers(sample: Sample, dialect: str) -> None:
    runner = ImageRunner(sample.bundle(dialect), RuntimeSettings(intra_threads=1))
    found = runner.embed_images(sample.pictures)
    assert (1 - (found * sample.wanted).sum(-1)).max() < MAX_COSINE_DISTANCE
    assert_allclose(found, sample.wanted, atol=TOLERANCE)
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)[~np.eye(len(found), dtype=bool)]
    assert apart.min() > 200 * TOLERANCE  # vectors that hardly differ would agree however wrong


def test_the_class_token_is_what_transformers_pools_of_dinov2(samples: dict[str, Sample]) -> None:
    import torch
    import transformers

    sample = samples["dinov2"]
    model = transformers.AutoModel.from_pretrained(sample.checkpoint).eval()
    with torch.no_grad():
        pooled = model(torch.from_numpy(np.stack(sample.pixels))).pooler_output.numpy()
    assert_allclose(pooled / np.linalg.norm(pooled, axis=-1, keepdims=True), sample.wanted, atol=1e-6)


def test_pixels_are_the_processors(sample: Sample) -> None:
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    for image, pixels in zip(sample.pictures, sample.pixels, strict=True):
        assert_allclose(spec.preprocess([image]).pixel_values[0], pixels, atol=1e-6)


def test_pixels_of_dinov3_are_within_a_byte_of_those_that_its_processor_resizes_as_real_numbers(
    samples: dict[str, Sample],
) -> None:
    """Rescaled, resized by smoothed triangles, normalised, as DINOv3ViTImageProcessor's `_preprocess` says."""
    import torch

    sample, (_, settings) = samples["dinov3-gated"], CASES["dinov3-gated"]
    spec, size = ImageSpec.read(sample.bundle().path(PREPROCESSOR)), tuple(settings["size"].values())
    mean, std = (np.array(settings[key], np.float32)[:, None, None] for key in ("image_mean", "image_std"))
    for image in sample.pictures:
        numbers = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255)
        resized = torch.nn.functional.interpolate(numbers, size, mode="bilinear", antialias=True)[0].numpy()
        found = spec.preprocess([image]).pixel_values[0] * std + mean
        assert_allclose(found, resized, atol=1.01 / 255)


def test_portable_graphs_use_standard_operators_only(sample: Sample) -> None:
    graph = onnx.load(sample.bundle("portable").directory / "vision_encoder.onnx", load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""}


def test_a_bundle_holds_no_tokenizer_and_says_what_it_embeds(samples: dict[str, Sample]) -> None:
    manifest = samples["dinov2"].bundle().manifest
    assert (manifest.task, manifest.embeds, manifest.sees) == ("image-embedding", True, True)
    assert manifest.image_vectors is not None
    assert manifest.image_vectors.sizes == (40,)
    assert "tokenizer.json" not in manifest.files
    shown = CliRunner().invoke(app, ["inspect", str(samples["dinov2"].bundle().directory)])
    assert "vectors of 40 numbers of images alone; texts are not read" in " ".join(shown.output.split())


@pytest.mark.parametrize("name", ["aimv2", "dinov2", "vit"])
def test_int8_variants_pass_the_gates_of_images_and_say_that_texts_were_not_measured(
    samples: dict[str, Sample], name: str, tmp_path: Path
) -> None:
    parent = samples[name].bundle().directory
    evaluation = Evaluation(captions=[Seen(image) for image in samples[name].pictures], source="tiny")
    manifest = quantize_bundle(parent, tmp_path / "int8", weights="int8", evaluation=evaluation)
    gates = {gate.name: gate.passed for gate in manifest.gates}
    assert {"cosine_mean/image", "cosine_p1/image", "correlation/image", "spread/image"} <= gates.keys()
    assert all(gates.values()), gates
    reasons = {gate.name: gate.reason for gate in manifest.unmeasured}
    assert reasons["cosine_mean/text"] == "no text was embedded"
    assert "accuracy_loss_points/low" in reasons
    page = tmp_path / "page.html"
    compare_bundles([parent, tmp_path / "int8"], page, with_speed=False, progress=lambda line: None)
    assert f"{_measure(manifest, 'cosine_mean/image'):.4f}" in page.read_text()


@pytest.mark.parametrize("name", ["dinov2-giant", "dinov2-registers", "dinov3", "dinov3-gated"])
def test_int8_variants_embed_nearly_the_same(samples: dict[str, Sample], name: str, tmp_path: Path) -> None:
    evaluation = Evaluation(captions=[Seen(image) for image in samples[name].pictures], source="tiny")
    manifest = quantize_bundle(
        samples[name].bundle().directory, tmp_path / "int8", weights="int8", evaluation=evaluation
    )
    assert manifest.components["vision_encoder"].scheme == "int8"
    assert _measure(manifest, "cosine_mean/image") > 0.85, manifest.gates


def test_a_benchmark_embeds_images_and_no_texts(samples: dict[str, Sample]) -> None:
    plan = BenchmarkPlan(batch_sizes=(1,), image_px=48, warmup=1, repeats=3, budget_s=0.5, threads=1)
    told = " | ".join(line.name for line in run_benchmark(samples["vit"].bundle().directory, plan).lines)
    assert "embed 1 image of 48 px" in told
    assert "text" not in told


def test_bodies_to_try_hold_texts_only_where_a_model_reads_them() -> None:
    eye = ModelCard("eye", "image-embedding", "dinov2", {"vision_encoder": "fp32"}, 1, None)
    both = ModelCard("both", "dual-encoder", "clip", {"vision_encoder": "fp32"}, 1, None)
    alone, beside = examples([eye]), examples([eye, both])
    assert (alone["/v1/embeddings"]["model"], beside["/v1/embeddings"]["model"]) == ("eye", "both")
    assert all(isinstance(part, dict) for part in alone["/v1/embeddings"]["input"] + alone["/v1/rerank"]["documents"])
    assert "a red circle" in beside["/v1/embeddings"]["input"]


def test_samples_of_a_file_may_be_images_alone(samples: dict[str, Sample], folder: Path) -> None:
    file, manifest = folder / "samples.jsonl", samples["vit"].bundle().manifest
    rows = [{"image": "0.png"}, {"image": "1.png", "label": "cat"}, {"image": "2.png", "label": "dog"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_samples(file, manifest)
    assert [sample.image.size for sample in read.captions] == [image.size for image in samples["vit"].pictures]
    assert not read.labelled
    assert read.num_verdicts == 0


def test_samples_without_images_measure_nothing_and_are_refused(samples: dict[str, Sample], tmp_path: Path) -> None:
    parent = samples["vit"].bundle().directory
    with pytest.raises(QuantizationError, match="words holds no images, and the model reads nothing else"):
        quantize_bundle(parent, tmp_path / "int8", weights="int8", evaluation=Evaluation(texts=["a"], source="words"))


def test_a_server_embeds_and_ranks_images_and_refuses_texts_by_name(samples: dict[str, Sample]) -> None:
    sample = samples["dinov2"]
    urls = [_url(image) for image in sample.pictures]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]

    async def main() -> None:
        async with LocalClient([sample.bundle().directory], EngineSettings(intra_threads=1)) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                answer = (await http.post("/v1/embeddings", json={"input": images})).json()
                assert_allclose([item["embedding"] for item in answer["data"]], sample.wanted, atol=TOLERANCE)
                assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
                body = {"query": {"image": urls[1]}, "documents": [{"image": url} for url in urls]}
                ranked = (await http.post("/v1/rerank", json=body)).json()["results"]
                cosines = sample.wanted @ sample.wanted[1]
                assert [each["index"] for each in ranked] == list(np.argsort(-cosines))
                assert_allclose([each["relevance_score"] for each in ranked], -np.sort(-cosines), atol=1e-4)
                refused = await http.post("/v1/embeddings", json={"input": [images[0], "a cat"]})
                assert refused.status_code == 400
                told = refused.json()["error"]
                assert told["message"].startswith("1 of 2 inputs are texts: eye reads images only. Send images, or")
                assert told["param"] == "input"
                card = (await http.get("/v1/models")).json()["data"][0]["capabilities"]
                assert [name for name, can in card.items() if can] == ["images", "embeddings", "rerank"]

    asyncio.run(asyncio.wait_for(main(), 120))


def test_what_reads_tokens_or_several_images_is_refused(samples: dict[str, Sample]) -> None:
    picture = ImagePart(_png(samples["dinov2"].pictures[0]))
    asked = [
        ((JoinedPart((picture, picture)),), {}, "an input of 2 parts: eye reads images only, one in each"),
        ((TextPart("a"),), {}, "1 of 1 inputs are texts"),
        ((picture,), {"instruction": "look"}, "instruction: eye reads images only"),
        ((picture,), {"granularity": "token"}, "eye has one vector of each image"),
        ((picture,), {"dimensions": 8}, "dimensions = 8: the model's vectors have 40 numbers"),
        ((), {}, "input is empty"),
    ]

    async def main() -> None:
        async with LocalClient([samples["dinov2"].bundle().directory], EngineSettings(intra_threads=1)) as client:
            for inputs, more, message in asked:
                with pytest.raises(Exception, match=message):
                    await client.embed(EmbedRequest("r", "eye", inputs, **more))
            for work in (
                client.tokenize(TokenizeRequest("t", "eye", text="a cat")),
                client.detokenize(DetokenizeRequest("t", "eye", [1])),
            ):
                with pytest.raises(TaskError, match="eye reads images only and has no tokens"):
                    await work

    asyncio.run(asyncio.wait_for(main(), 120))


def test_the_command_line_embeds_indexes_and_searches_by_image(
    samples: dict[str, Sample], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    bundle, pictures = str(samples["vit"].bundle().directory), sorted(folder.glob("*.png"))
    embedded = _run("embed", bundle, *(word for file in pictures for word in ("--image", str(file))), "--json")
    assert_allclose(json.loads(embedded.stdout)["embeddings"], samples["vit"].wanted, atol=TOLERANCE)
    index = str(tmp_path / "index")
    _run("index", str(folder), "--model", bundle, "-o", index)
    hits = json.loads(_run("search", index, "--image", str(pictures[2]), "--json").stdout)
    assert hits[0]["image"] == "2.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    refused = CliRunner().invoke(app, ["search", index, "a cat"])
    assert refused.exit_code == 2
    told = " ".join(refused.output.replace("│", " ").split())
    assert "1 of 1 inputs are texts: eye reads images only" in told


@pytest.mark.parametrize(("name", "change", "processed", "message"), REFUSED)
def test_what_is_not_built_is_refused_by_name(
    samples: dict[str, Sample],
    tmp_path: Path,
    name: str,
    change: dict[str, Any],
    processed: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CASES[name][1] | processed))
    (tmp_path / "config.json").write_text(json.dumps(CASES[name][0] | change))
    weights = samples[name].checkpoint / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(UnsupportedConfigError, match=message):
        export_checkpoint(tmp_path, tmp_path / "bundle")


def _measure(manifest: Manifest, name: str) -> float:
    (found,) = [gate.value for gate in manifest.gates if gate.name == name]
    return found


def _run(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _url(image: Image.Image) -> str:
    return "data:image/png;base64," + b64encode(_png(image)).decode()
