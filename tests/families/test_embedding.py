"""Decoders that embed, against the last hidden states of transformers' model of the same weights."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bundle.directory import Bundle, open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from quant.calibration.feeds import FeedSource
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings
from serving.models.client import LocalClient
from serving.protocol import EmbedRequest, ImagePart, JoinedPart, TextPart
from serving.settings import EngineSettings

FAMILIES = ("gemma3", "gemma4", "git", "internvl", "lfm2_vl", "llava_next", "paligemma", "qwen2_5_vl", "qwen3_vl")
CASES = [(family, "last", "contrib") for family in FAMILIES]
CASES += [("llava_vlora", "last", "contrib"), ("paligemma", "mean", "portable"), ("qwen2_5_vl", "mean", "portable")]
SETTINGS = RuntimeSettings(intra_threads=1)
IMAGE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 70, 3), np.uint8))


def turns_of(parts: list[str | Image.Image]) -> list[Turn]:
    return [Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))]


def states_of(sample: Any, parts: list[str | Image.Image]) -> np.ndarray:
    """Return [T, D]: what transformers' decoder makes of a prompt, normed."""
    import torch

    with torch.no_grad():
        found = sample.model(**sample.inputs(parts), output_hidden_states=True).hidden_states[-1]
    return np.asarray(found[0].float().numpy())


def embedding_bundle(sample: Any, folder: Path, **options: Any) -> Bundle:
    dialect = options.pop("dialect", "contrib")
    export_checkpoint(sample.checkpoint, folder, name="tiny", dialect=dialect, embedding=EmbeddingOptions(**options))
    return open_bundle(folder)


@pytest.mark.parametrize(("family", "pooling", "dialect"), CASES)
def test_vectors_are_the_references_pooled_states(
    family: str, pooling: str, dialect: str, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    sample = sample_of(family, 0)
    bundle = embedding_bundle(sample, tmp_path / "bundle", pooling=pooling, dialect=dialect)
    runner = EmbedderRunner(bundle, SETTINGS)
    asked = list(sample.conversations(conversations).values())
    found = runner.embed_turns([(turns_of(parts), [p for p in parts if not isinstance(p, str)]) for parts in asked])
    for parts, vector in zip(asked, found, strict=True):
        states = states_of(sample, parts)
        expected = states[-1] if pooling == "last" else states.mean(axis=0)
        assert 1 - vector @ expected / np.linalg.norm(expected) < 1e-4
        np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


def test_built_in_samples_are_those_that_the_decoder_has_places_for(sample_of: Any, tmp_path: Path) -> None:
    """A table of learned places ends: a text beyond it failed within a run, with the runtime's words."""
    bundle = embedding_bundle(sample_of("git", 0), tmp_path / "bundle")
    samples = built_in_samples(bundle, "calibration")
    assert samples.texts
    assert samples.captions
    assert len(FeedSource(bundle, samples).of("decoder")) == len(samples.texts) + 2 * len(samples.captions)
    most = bundle.manifest.embedder.max_positions
    assert all(feeds["inputs_embeds"].shape[1] <= most for feeds in FeedSource(bundle, samples).of("decoder"))


@pytest.mark.parametrize("family", ["trocr", "donut", "blip"])
def test_models_that_read_no_text_without_an_image_are_refused_before_graphs_are_built(
    family: str, sample_of: Any, tmp_path: Path
) -> None:
    checkpoint = sample_of(family, 0).checkpoint
    for options, named in ((EmbeddingOptions(), "embed"), (EmbeddingOptions(also_answers=True), "both")):
        with pytest.raises(UnsupportedConfigError, match=rf"--task {named}: .* one image in every prompt"):
            export_checkpoint(checkpoint, tmp_path / "bundle", embedding=options)
    with pytest.raises(UnsupportedConfigError, match=r"--task rank: .* one image in every prompt"):
        export_checkpoint(checkpoint, tmp_path / "bundle", embedding=EmbeddingOptions(ranks=True))


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_images_in_a_memory_beside_the_prompt_are_embedded_as_mme5_writes_them(
    sample_of: Any, tmp_path: Path, dialect: str
) -> None:
    """Against transformers' mllama behind its processor and a tokenizer that begins every text, as Llama 3.2's does."""
    import torch
    from transformers import AutoTokenizer

    own = sample_of("mllama", 0)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(own.checkpoint, checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    file = checkpoint / "tokenizer.json"
    begun = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": tokenizer.bos_token, "type_id": 0}}]}
    begun["single"].append({"Sequence": {"id": "A", "type_id": 0}})
    begun["pair"] = [*begun["single"], {"Sequence": {"id": "B", "type_id": 1}}]
    bos = {"id": tokenizer.bos_token, "ids": [tokenizer.bos_token_id], "tokens": [tokenizer.bos_token]}
    begun["special_tokens"] = {tokenizer.bos_token: bos}
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": begun}))
    sample = replace(own, checkpoint=checkpoint, made=tmp_path)
    runner = EmbedderRunner(embedding_bundle(sample, tmp_path / "bundle", template="mme5", dialect=dialect), SETTINGS)
    other = IMAGE.resize((90, 33))
    inputs: list[list[str | Image.Image]] = [["A cat and a dog"], [IMAGE, "Represent the image."], [IMAGE, other, "x"]]
    inputs += [["x"], [other, "Represent the image."]]
    processor, expected = own.family.processor(checkpoint), []
    for parts in inputs:
        images = [part for part in parts if not isinstance(part, str)]
        text = "<|image|>" * len(images) + str(parts[-1])
        taken = processor(text=text, images=images or None, return_tensors="pt")
        assert runner.prompt(turns_of(parts), images).prompt.token_ids.tolist() == taken["input_ids"][0].tolist()
        with torch.no_grad():
            states = own.model(**taken, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
        expected.append(states / np.linalg.norm(states))
    found = runner.embed_turns([(turns_of(parts), [p for p in parts if not isinstance(p, str)]) for parts in inputs])
    assert max(1 - own @ other for own, other in zip(found, expected, strict=True)) < 1e-4
    assert found[1] @ found[4] < 1 - 1e-3
    if dialect == "contrib":
        served = asyncio.run(asyncio.wait_for(_served(tmp_path / "bundle", inputs), 120))
        assert max(1 - own @ other for own, other in zip(served, expected, strict=True)) < 1e-4


def test_images_are_cut_as_those_among_others_where_an_input_has_several(sample_of: Any, tmp_path: Path) -> None:
    sample = sample_of("llava_onevision", 0)
    bundle = embedding_bundle(sample, tmp_path / "bundle", pooling="last")
    inputs: list[list[str | Image.Image]] = [[IMAGE, IMAGE.resize((33, 90)), "x"], [IMAGE, "x"]]
    expected = [states_of(sample, parts)[-1] for parts in inputs]
    runner = EmbedderRunner(bundle, SETTINGS)
    found = runner.embed_turns([(turns_of(parts), [p for p in parts if not isinstance(p, str)]) for parts in inputs])
    served = asyncio.run(asyncio.wait_for(_served(bundle.directory, inputs), 120))
    for own, by_server, wanted in zip(found, served, expected, strict=True):
        assert 1 - own @ wanted / np.linalg.norm(wanted) < 1e-4
        assert 1 - by_server @ wanted / np.linalg.norm(wanted) < 1e-4


async def _served(bundle: Path, inputs: list[list[str | Image.Image]]) -> np.ndarray:
    """Return the vectors of inputs of one request."""
    parts = []
    for given in inputs:
        made = []
        for part in given:
            if isinstance(part, str):
                made.append(TextPart(part))
                continue
            part.save(file := BytesIO(), "PNG")
            made.append(ImagePart(file.getvalue()))
        parts.append(made[0] if len(made) == 1 else JoinedPart(tuple(made)))
    async with LocalClient([bundle], EngineSettings(intra_threads=1)) as client:
        found = (await client.embed(EmbedRequest("r", "tiny", tuple(parts)))).embeddings
    return np.asarray(found)


_GME = "<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
_LAMRA = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{input}\nSummarize above {said} in "
    "one word: <|im_end|>\n<|im_start|>assistant\n"
)
_E5_V = (
    "<|start_header_id|>user<|end_header_id|>\n\n{input}\nSummary above {said} in one word: <|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n \n"
)


@pytest.mark.parametrize(
    ("family", "template", "instruction", "parts", "written"),
    [
        (
            "qwen2_vl",
            "gme",
            None,
            ["a red bicycle"],
            _GME.format(said="You are a helpful assistant.", input="a red bicycle"),
        ),
        ("qwen2_vl", "gme", "Find it.", [IMAGE, "x"], _GME.format(said="Find it.", input="{qwen}x")),
        ("qwen2_vl", "lamra", None, ["a bicycle"], _LAMRA.format(input="a bicycle", said="sentence")),
        ("qwen2_vl", "lamra", None, [IMAGE], _LAMRA.format(input="{qwen}", said="image")),
        ("qwen2_vl", "lamra", None, [IMAGE, "x"], _LAMRA.format(input="{qwen}x", said="image and sentence")),
        ("llava_next", "e5-v", None, ["a red bicycle"], _E5_V.format(said="sentence", input="a red bicycle")),
        ("llava_next", "e5-v", None, [IMAGE], _E5_V.format(said="image", input="<image>")),
        ("qwen2_vl", "plain", None, ["Find: ", IMAGE, " red"], "Find: {qwen} red"),
    ],
)
def test_named_templates_write_what_the_models_own_code_writes(
    sample_of: Any,
    tmp_path: Path,
    family: str,
    template: str,
    instruction: str | None,
    parts: list[str | Image.Image],
    written: str,
) -> None:
    """Their special tokens are not of these tiny vocabularies: what is compared is the text, and the image's tokens."""
    sample = sample_of(family, 0)
    bundle = embedding_bundle(sample, tmp_path / "bundle", template=template)
    text = written.replace("{qwen}", "<|vision_start|><|image_pad|><|vision_end|>")
    images = [part for part in parts if not isinstance(part, str)]
    expected = sample.processor(text=[text], images=images or None, return_tensors="pt")["input_ids"][0]
    said = [] if instruction is None else [Turn("system", (instruction,))]
    found = EmbedderRunner(bundle, SETTINGS).prompt([*said, *turns_of(parts)], images).prompt.token_ids
    assert found.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def colqwen2(families: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ColQwen2 checkpoint: the weights of a Qwen2-VL under its own names, and a projection."""
    folder = tmp_path_factory.mktemp("colqwen2") / "checkpoint"
    family = families["qwen2_vl"]
    vlm = next(iter(family.geometries().values()))
    family.save(folder, vlm)
    drawn = load_file(folder / "model.safetensors")
    renamed = {re.sub(r"^model\.", "language_model.", name): each for name, each in drawn.items()}
    _write_projected(folder, {f"vlm.{name}": each for name, each in renamed.items()})
    config = {"model_type": "colqwen2", "architectures": ["ColQwen2ForRetrieval"], "embedding_dim": 16}
    (folder / "config.json").write_text(json.dumps({**config, "vlm_config": vlm}))
    return folder


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_colqwen2_gives_the_references_vectors_of_its_processors_tokens(
    families: dict[str, Any], colqwen2: Path, conversations: dict[str, Any], dialect: str, tmp_path: Path
) -> None:
    """With positions on three axes, by which these models were trained; transformers 5 leaves them out here."""
    import torch
    from transformers import ColQwen2ForRetrieval, ColQwen2Processor

    model, found = ColQwen2ForRetrieval.from_pretrained(colqwen2, output_loading_info=True)
    assert not any(found.values()), found
    processor = families["qwen2_5_vl"].still_processor(ColQwen2Processor, colqwen2)
    export_checkpoint(colqwen2, tmp_path / "bundle", name="tiny", dialect=dialect)
    runner = EmbedderRunner(open_bundle(tmp_path / "bundle"), SETTINGS)
    assert runner.is_multi
    images = [part for part in conversations["two images"] if not isinstance(part, str)]
    texts = ["a red bicycle", "<|image_pad|>?"]
    batches = [processor(images=[image]) for image in images] + [processor(text=[texts[0]])]
    expected = []
    for batch in batches:
        more = {}
        if "pixel_values" in batch:
            is_image = (batch["input_ids"] == processor.image_token_id).int()
            more["position_ids"] = model.vlm.get_rope_index(batch["input_ids"], is_image, batch["image_grid_thw"])[0]
        with torch.no_grad():
            expected.append(model.eval()(**batch, **more).embeddings[0].numpy())
    vectors = runner.embed_turns([(turns_of([image]), [image]) for image in images] + [(turns_of([texts[0]]), [])])
    for own, other in zip(vectors, expected, strict=True):
        assert own.shape == other.shape
        assert (1 - (own * other).sum(axis=-1)).max() < 1e-4
    (told,) = runner.embed_texts(texts[1:])  # spells a control token, and is nothing but text
    assert len(told) > len(vectors[-1])


@pytest.fixture(scope="module")
def colpali(families: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ColPali checkpoint: the weights of a PaliGemma of Gemma 2's kind under its own names, and a projection."""
    folder = tmp_path_factory.mktemp("colpali") / "checkpoint"
    family = families["paligemma"]
    vlm = list(family.geometries().values())[1]
    family.save(folder, vlm)
    drawn = {name: each for name, each in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    _write_projected(folder, {f"vlm.{name.removeprefix('model.')}": each for name, each in drawn.items()})
    config = {"model_type": "colpali", "architectures": ["ColPaliForRetrieval"], "embedding_dim": 16}
    (folder / "config.json").write_text(json.dumps({**config, "vlm_config": vlm}))
    return folder


def _write_projected(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """Write weights with a projection of states of 48 numbers to vectors of 16."""
    rng = np.random.default_rng(3)
    projection = {"weight": rng.standard_normal((16, 48)), "bias": rng.standard_normal(16)}
    named = {f"embedding_proj_layer.{name}": each.astype(np.float32) for name, each in projection.items()}
    save_file({**weights, **named}, folder / "model.safetensors", {"format": "pt"})


def test_colpali_gives_the_references_vectors_of_its_processors_tokens(
    colpali: Path, conversations: dict[str, Any], tmp_path: Path
) -> None:
    """Every token sees all of its input, and none of what is padded behind it."""
    import torch
    from transformers import AutoTokenizer, ColPaliForRetrieval, ColPaliProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    model, found = ColPaliForRetrieval.from_pretrained(colpali, output_loading_info=True)
    assert not any(found.values()), found
    images = SiglipImageProcessorPil.from_pretrained(colpali)
    processor = ColPaliProcessor(images, AutoTokenizer.from_pretrained(colpali))
    export_checkpoint(colpali, tmp_path / "bundle", name="tiny")
    runner = EmbedderRunner(open_bundle(tmp_path / "bundle"), SETTINGS)
    shown = [part for part in conversations["two images"] if not isinstance(part, str)]
    texts = ["a red bicycle", "a red bicycle here"]
    batches = [processor(images=[image]) for image in shown] + [processor(text=[text]) for text in texts]
    vectors = [*runner.embed_images(shown), *runner.embed_texts(texts)]
    for own, batch in zip(vectors, batches, strict=True):
        taken = {name: torch.as_tensor(batch[name]) for name in batch if name != "labels"}
        with torch.no_grad():
            expected = model.eval()(**taken).embeddings[0].numpy()
        assert own.shape == expected.shape
        assert (1 - (own * expected).sum(axis=-1)).max() < 1e-4


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_variants_embed_nearly_the_same_and_are_measured(
    sample_of: Any, colqwen2: Path, tmp_path: Path, weights: str
) -> None:
    """Random weights: a variant that had nothing to do with its parent would have cosines near 0."""
    parent = tmp_path / "parent"
    if weights == "int8":
        export_checkpoint(colqwen2, parent, name="tiny")
    else:
        embedding_bundle(sample_of("llava_gemma", 0), parent, pooling="mean")
    captions = [Captioned(Image.new("RGB", (40 + 9 * n, 50), (60 * n, 90, 20)), f"number {n}") for n in range(4)]
    evaluation = Evaluation(
        captions=captions, texts=["a red bicycle", "x"], source="test", no_accuracy="random weights"
    )
    manifest = quantize_bundle(parent, tmp_path / "variant", weights=weights, evaluation=evaluation)
    assert {component.scheme for component in manifest.components.values()} >= {weights}
    measured = {gate.name: gate.value for gate in manifest.gates}
    for kind in ("image", "text"):
        assert measured[f"cosine_mean/{kind}"] > 0.9, measured
    assert len(manifest.components) == 3


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str
