"""Decoders that rank: the odds of yes against no, against the scores of transformers' model of the same weights."""

from __future__ import annotations

import asyncio
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ParameterError, TaskError, UnsupportedConfigError
from bundle.summary import summary
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from runtime.rank_runner import RankRunner
from runtime.settings import RuntimeSettings
from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.protocol import EmbedRequest, ImagePart, JoinedPart, ScoreRequest, TextPart, TokensPart
from serving.settings import ApiSettings, EngineSettings

SETTINGS = EngineSettings(max_sequences=4, intra_threads=1)
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))
    for seed, size in ((5, (40, 70, 3)), (6, (50, 33, 3)))
]
SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
WRITTEN = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {told}<Query>:{query}\n<Document>:{document}<|im_end|>\n<|im_start|>assistant\n"
)
TOLD = "Given a search query, retrieve relevant candidates that answer the query."
YES, NO = 3, 4


@pytest.fixture(scope="module", params=[("qwen3_vl", 0), ("qwen3_vl", 1), ("qwen2_5_vl", 1)], ids=str)
def sample(request: Any, sample_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model whose vocabulary has the two words, and its checkpoint."""
    from dataclasses import replace

    own = sample_of(*request.param)
    folder = tmp_path_factory.mktemp("rank") / "checkpoint"
    shutil.copytree(own.checkpoint, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for word, number in (("yes", YES), ("no", NO)):  # in the places of bytes that no text of these tests has
        (byte,) = (byte for byte, own in vocabulary.items() if own == number)
        vocabulary[word] = vocabulary.pop(byte)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return replace(own, checkpoint=folder, made=folder.parent)


@pytest.fixture(scope="module")
def bundle(sample: Any) -> Path:
    folder: Path = sample.made / "rank"
    export_checkpoint(sample.checkpoint, folder, name="judge", embedding=EmbeddingOptions(ranks=True))
    return folder


def expected(sample: Any, query: list[Any], document: list[Any], told: str = TOLD) -> float:
    """Return the score by transformers: the difference of two of its logits behind the prompt."""

    def written(parts: list[Any]) -> str:
        return "".join(part if isinstance(part, str) else SEEN for part in parts)

    text = WRITTEN.format(told=told, query=written(query), document=written(document))
    return logit(sample, text, [part for part in (*query, *document) if not isinstance(part, str)])


def logit(sample: Any, text: str, images: list[Image.Image]) -> float:
    """Return by how much transformers' logit of yes is above that of no, behind a text with images."""
    import torch

    inputs = sample.processor(text=[text], images=images or None, return_tensors="pt")
    with torch.no_grad():
        logits = sample.model(**inputs).logits[0, -1]
    return float(logits[YES] - logits[NO])


def part_of(parts: list[Any]) -> Any:
    made = tuple(TextPart(part) if isinstance(part, str) else ImagePart(png(part)) for part in parts)
    return made[0] if len(made) == 1 else JoinedPart(made)


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PAIRS: list[tuple[list[Any], list[Any]]] = [
    (["a red bicycle"], ["it stands in a street"]),
    (["a red bicycle"], [IMAGES[0]]),
    ([IMAGES[1], "in snow"], [IMAGES[0], "a street"]),
    ([IMAGES[1]], ["x"]),
    (["a red bicycle"], ["x " * 30]),
]


def test_scores_are_the_difference_of_transformers_logits(sample: Any, bundle: Path) -> None:
    """All pairs at once, so that those of about one length run side by side."""
    wanted = [expected(sample, *pair) for pair in PAIRS]
    told = expected(sample, *PAIRS[0], "Find what rolls.")

    async def main() -> list[Any]:
        async with LocalClient([bundle], SETTINGS) as client:
            pairs = tuple((part_of(query), part_of(document)) for query, document in PAIRS)
            raw = client.score(ScoreRequest("r", "judge", pairs, is_raw=True))
            between = client.score(ScoreRequest("s", "judge", pairs))
            other = client.score(ScoreRequest("t", "judge", pairs[:1], is_raw=True, instruction="Find what rolls."))
            return list(await asyncio.gather(raw, between, other))

    raw, between, other = asyncio.run(asyncio.wait_for(main(), 120))
    np.testing.assert_allclose(raw.scores, wanted, atol=1e-3)
    np.testing.assert_allclose(between.scores, 1 / (1 + np.exp(-np.array(wanted))), atol=1e-3)
    np.testing.assert_allclose(other.scores, [told], atol=1e-3)
    assert np.ptp(wanted) > 0.01
    assert abs(told - wanted[0]) > 2e-3
    assert raw.prompt_tokens == between.prompt_tokens > 0


def test_lamra_asks_for_yes_and_no_as_its_code_writes_a_pair(sample: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(sample.checkpoint, checkpoint)
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text().replace('"yes"', '"Yes"').replace('"no"', '"No"'))
    export_checkpoint(checkpoint, tmp_path / "bundle", embedding=EmbeddingOptions(template="lamra", ranks=True))
    runner = RankRunner(open_bundle(tmp_path / "bundle"), RuntimeSettings(intra_threads=1))
    asked = (  # the published code breaks a line of its source within this text
        "I will provide you with a query and a candidate. Please evaluate whether the candidate\
                        meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed "
        "with 'No'."
    )
    text = (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{asked}Query:a red bicycle"
        f"Candidate:{SEEN}<|im_end|>\n<|im_start|>assistant\n"
    )
    np.testing.assert_allclose(runner.scores("a red bicycle", IMAGES[:1]), [logit(sample, text, IMAGES[:1])], atol=1e-3)


def test_a_bundle_says_that_it_scores(bundle: Path) -> None:
    told = "\n".join(str(line) for line in summary(bundle, open_bundle(bundle).manifest))
    assert "the chance of yes, of yes and no" in told


def test_portable_graphs_score_alike(sample: Any, tmp_path: Path) -> None:
    export_checkpoint(sample.checkpoint, tmp_path / "b", dialect="portable", embedding=EmbeddingOptions(ranks=True))
    found = RankRunner(open_bundle(tmp_path / "b"), RuntimeSettings(intra_threads=1))
    scores = found.scores("a red bicycle", ["it stands in a street", IMAGES[0]])
    np.testing.assert_allclose(scores, [expected(sample, *pair) for pair in PAIRS[:2]], atol=1e-3)


def test_a_server_ranks_texts_and_images_and_says_what_it_does_not(bundle: Path) -> None:
    async def main() -> None:
        async with LocalClient([bundle], SETTINGS) as client:
            transport = httpx.ASGITransport(create_app(client, ApiSettings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                body = {"query": "a red bicycle", "documents": ["a street", "x", "y"], "instruction": "Find it."}
                answer = (await http.post("/v1/rerank", json=body)).json()
                scores = [each["relevance_score"] for each in answer["results"]]
                assert scores == sorted(scores, reverse=True)
                assert all(0 < score < 1 for score in scores)
                refused = await http.post("/v1/rerank", json={**body, "task": "code"})
                assert "has no adapters" in refused.json()["error"]["message"]
                card = (await http.get("/v1/models")).json()["data"][0]
                assert [name for name, can in card["capabilities"].items() if can] == ["images", "rerank"]
                assert (await http.post("/v1/embeddings", json={"input": "x"})).status_code == 400
            long = ScoreRequest("r", "judge", ((TextPart("x"), TextPart("y" * 3000)),))
            with pytest.raises(ContextLengthError):
                await client.score(long)
            with pytest.raises(ParameterError, match="token ids"):
                await client.score(ScoreRequest("r", "judge", ((TextPart("x"), TokensPart((3, 4))),)))
            region = ImagePart(png(IMAGES[0]), (0.0, 0.0, 0.5, 1.0))
            for document in (region, JoinedPart((TextPart("y"), region))):
                with pytest.raises(ParameterError, match="box: judge has no vectors of regions"):
                    await client.score(ScoreRequest("r", "judge", ((TextPart("x"), document),)))
            with pytest.raises(TaskError):
                await client.embed(EmbedRequest("r", "judge", (TextPart("x"),)))

    asyncio.run(asyncio.wait_for(main(), 120))


class _Seen:
    def __init__(self, image: Image.Image, caption: str) -> None:
        self.image, self.caption = image, caption


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_variants_rank_nearly_alike_and_are_measured_by_order(bundle: Path, tmp_path: Path, weights: str) -> None:
    captions = [_Seen(image, text) for image, text in zip(IMAGES * 2, ("a", "bb", "c c", "dddd"), strict=True)]
    evaluation = Evaluation(captions=captions, source="test", no_accuracy="random weights")
    manifest = quantize_bundle(bundle, tmp_path / "variant", weights=weights, evaluation=evaluation)
    measured = {gate.name: gate.value for gate in manifest.gates}
    assert {"clear_order", "score_difference"} <= measured.keys()
    assert measured["canary_cosine/decoder"] > 0.9  # random weights decide clearly on nothing: probabilities leap


def test_what_cannot_rank_is_refused_by_name(sample: Any, sample_of: Any, tmp_path: Path) -> None:
    def export(checkpoint: Path, **options: Any) -> None:
        export_checkpoint(checkpoint, tmp_path / "bundle", embedding=EmbeddingOptions(ranks=True, **options))

    with pytest.raises(UnsupportedConfigError, match=r"compares the tokens yes and no, .* has no yes nor no"):
        export(sample_of("qwen3_vl", 0).checkpoint)
    with pytest.raises(UnsupportedConfigError, match="no request for scores of pairs names one"):
        export_checkpoint(
            sample.checkpoint, tmp_path / "b", embedding=EmbeddingOptions(ranks=True), adapters={"a": tmp_path}
        )
    with pytest.raises(UnsupportedConfigError, match="--pooling mean is of vectors"):
        export(sample.checkpoint, pooling="mean")
    with pytest.raises(UnsupportedConfigError, match="nor one of qwen3-reranker, lamra"):
        export(sample.checkpoint, template="gme")
