"""Every dual encoder against transformers: pixels, tokens, vectors in both dialects, int8 by its gate, and served."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from bundle.errors import ParameterError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import TOKENIZER, Tokenizer
from export.exporter import export_checkpoint
from graphs.lowering.tensorrt_operators import STANDARD_FROM, judge_graph
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.one_embedding import DualEncoderRunner
from runtime.settings import RuntimeSettings
from serving.models.embedding import EmbeddingModel
from serving.models.pool import PreprocessPool
from serving.models.text_rows import TextRows
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

FAMILIES = tuple(
    sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "conftest" and not path.stem.startswith("test_")
    )
)
GEOMETRIES = [(family, number) for family in FAMILIES for number in (0, 1)]
DIALECTS = ("contrib", "portable")
SETTINGS = RuntimeSettings(intra_threads=1)
MAX_COSINE_DISTANCE = 1e-4
# of unit vectors: float32 sums in another order; an error in a graph makes 1e-2 and more
TOLERANCE = 5e-5


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


@pytest.fixture(params=GEOMETRIES, ids=[f"{family}-{number}" for family, number in GEOMETRIES])
def sample(request: pytest.FixtureRequest, sample_of: Any) -> Any:
    return sample_of(*request.param)


@pytest.fixture
def expected(sample: Any, encoder_files: ModuleType) -> Any:
    return sample.expected(encoder_files.pictures(), sample.texts)


def assert_same_vectors(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (1 - (found * wanted).sum(-1)).max() < MAX_COSINE_DISTANCE
    assert_allclose(found, wanted, atol=TOLERANCE)


def test_texts_are_the_tokenizers_token_by_token(sample: Any, expected: Any) -> None:
    bundle = sample.bundle()
    tokenizer, dims = Tokenizer.from_file(bundle.path(TOKENIZER)), bundle.manifest.dual
    found = tokenizer.encode_batch(
        sample.texts,
        max_tokens=dims.max_text_tokens,
        pad_token_id=dims.pad_token_id,
        pads_to_max=dims.pads_to_max,
    )
    wanted = expected.inputs["input_ids"].numpy()
    if "attention_mask" not in expected.inputs and not dims.pads_to_max:  # padded to the full length, unread
        for ids, row, mask in zip(wanted, found.input_ids, found.attention_mask, strict=True):
            assert_array_equal(ids[: mask.sum()], row[: mask.sum()])
            assert len(set(ids[mask.sum() :])) == 1
        return
    assert_array_equal(found.input_ids, wanted)
    if not dims.pads_to_max:
        assert_array_equal(found.attention_mask, expected.inputs["attention_mask"].numpy())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_images_and_texts_are_embedded_as_by_the_reference(
    sample: Any, expected: Any, dialect: str, encoder_files: ModuleType
) -> None:
    runner = DualEncoderRunner(sample.bundle(dialect), SETTINGS)
    assert_same_vectors(runner.embed_texts(sample.texts), expected.texts)
    for image, vector in zip(encoder_files.pictures(), expected.images, strict=True):
        assert_same_vectors(runner.embed_images([image]), vector[None])
    differences = expected.texts[:, None] - expected.texts[None]
    apart = np.linalg.norm(differences, axis=-1)[~np.eye(len(differences), dtype=bool)]
    assert apart.min() > 200 * TOLERANCE  # vectors that hardly differ would agree however wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_the_processors(family: str, sample_of: Any, encoder_files: ModuleType) -> None:
    sample = sample_of(family, 1)
    images = encoder_files.pictures()
    inputs = sample.expected(images, ["a"]).inputs
    has_shapes = hasattr(sample.family, "pixels")
    wanted = sample.family.pixels(inputs) if has_shapes else inputs["pixel_values"].numpy()
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    for image, pixels in zip(images, wanted, strict=True):
        assert_allclose(spec.preprocess([image]).pixel_values[0], pixels, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_portable_graphs_use_standard_operators_only(family: str, sample_of: Any) -> None:
    bundle = sample_of(family, 0).bundle("portable")
    domains = {
        node.domain
        for path in bundle.directory.glob("*.onnx")
        for node in onnx.load(path, load_external_data=False).graph.node
    }
    assert domains == {""}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operator_is_known_to_the_tables_of_tensorrt(family: str, sample_of: Any) -> None:
    bundle = sample_of(family, 0).bundle("portable")
    judged = (
        judge_graph(bundle.graph_path(name), bundle.manifest.always_given(name), STANDARD_FROM)
        for name in bundle.manifest.components
    )
    lacking = {each for verdict in judged for each in verdict.lacking}
    assert not {each for each in lacking if not each.startswith("Resize in mode cubic")}


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_variants_pass_the_gate(family: str, sample_of: Any, encoder_files: ModuleType, tmp_path: Path) -> None:
    parent = sample_of(family, 0).bundle()
    captions = [Captioned(*pair) for pair in zip(encoder_files.pictures(), encoder_files.TEXTS, strict=False)]
    evaluation = Evaluation(captions=captions, texts=encoder_files.TEXTS, source="tiny", no_accuracy="they are few")
    manifest = quantize_bundle(parent.directory, tmp_path / "int8", weights="int8", evaluation=evaluation)
    gates = {gate.name: gate.passed for gate in manifest.gates}
    assert {"cosine_mean/image", "correlation/image", "cosine_mean/text", "correlation/text"} <= gates.keys()
    if (least := getattr(sample_of(family, 0).family, "LEAST_COSINE", None)) is None:
        assert all(gates.values()), gates
        return
    values = {gate.name: gate.value for gate in manifest.gates}
    assert min(values[f"cosine_mean/{kind}"] for kind in ("image", "text")) > least, values


@pytest.mark.parametrize("family", FAMILIES)
def test_served_vectors_and_scores_are_those_of_the_reference(
    family: str, sample_of: Any, encoder_files: ModuleType
) -> None:
    sample = sample_of(family, 1)
    images, texts = encoder_files.pictures(), tuple(sample.texts)
    expected = sample.expected(images, texts)
    bundle, sent = sample.bundle(), [ImagePart(_png(image)) for image in images]

    async def main() -> None:
        settings = EngineSettings(max_sequences=3, intra_threads=1)
        pool = PreprocessPool(settings)
        model = EmbeddingModel(bundle, settings, pool)
        model.start()
        try:
            embedded = await model.embed(EmbedRequest("r", "m", (*map(TextPart, texts), *sent)))
            scored = await model.classify(ClassifyRequest("r", "m", tuple(sent), texts, ("{}",)))
        finally:
            model.close()
            pool.close()
        assert_same_vectors(embedded.embeddings, np.concatenate([expected.texts, expected.images]))
        assert_allclose(scored.scores, _probabilities(expected.logits, bundle.manifest.dual.scoring), atol=2e-3)

    asyncio.run(main())


def test_texts_of_which_learned_prompts_leave_nothing_are_refused(sample_of: Any) -> None:
    bundle = sample_of("maple", 1).bundle()
    dims = bundle.manifest.dual
    rows = TextRows(bundle, dims.max_text_tokens, dims.pad_token_id, replaced_tokens=dims.replaced_tokens)
    assert dims.replaced_tokens == 3
    for short in ("cat", [512, 5, 6, 513]):  # a letter is a token; a beginning and an end stand around three prompts
        with pytest.raises(ParameterError, match="6 or more are read: learned prompts stand in the places of its"):
            rows.batch([short, "a longer text"])  # no ContextLengthError: the routes would say to let it be cut
    assert rows.batch(["cats"]).input_ids.shape == (1, 6)
    with pytest.raises(ParameterError, match="the model reads 6 to 48 tokens"):
        rows.most_tokens(5)


def test_texts_of_no_token_are_refused_where_nothing_is_put_around_a_text(sample_of: Any) -> None:
    bundle = sample_of("tipsv2", 1).bundle()
    rows = TextRows(bundle, bundle.manifest.dual.max_text_tokens, bundle.manifest.dual.pad_token_id)
    for nothing in ("", " \n", []):
        with pytest.raises(ParameterError, match="a text holds nothing that the model reads; send at least one word"):
            rows.batch(["cat", nothing])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_built_is_refused_by_name(family: str, sample_of: Any, tmp_path: Path) -> None:
    sample = sample_of(family, 0)
    for number, (change, message) in enumerate(sample.family.REFUSED):
        copy = shutil.copytree(sample.checkpoint, tmp_path / str(number))
        for file in [key for key in change if key.endswith(".json")]:
            settings = json.loads((copy / file).read_text())
            (copy / file).write_text(json.dumps(settings | change[file]))
        has_own = hasattr(sample.family, "changed")
        settings = sample.family.changed(change) if has_own else _changed(sample.config, change)
        (copy / getattr(sample.family, "CONFIG", "config.json")).write_text(json.dumps(settings))
        with pytest.raises(UnsupportedConfigError, match=message):
            export_checkpoint(copy, tmp_path / "bundle")


def _changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    of_config = {key: value for key, value in change.items() if not key.endswith(".json")}
    nested = {key: config[key] | value for key, value in of_config.items() if isinstance(value, dict)}
    return config | of_config | nested


def _probabilities(logits: np.ndarray, scoring: str) -> np.ndarray:
    if scoring == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
