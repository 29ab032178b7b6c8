"""Models whose vision encoder reads the question: an image asked two things is two images to every cache."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import (
    CheckpointError,
    ContextLengthError,
    ParameterError,
    PromptError,
    QuantizationError,
    SignatureError,
    UnsupportedConfigError,
)
from bundle.image import TileLayout
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.question import QuestionReader
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from quant.calibration.feeds import FeedSource
from quant.planning.draft import Options
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from reference import scenes
from runtime.encoder import open_encoder
from runtime.encoders import encode_images
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.elsewhere import SentImage
from serving.models.encoder_host import EncoderHost
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    TokenizeRequest,
    Usage,
)
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1)
QUESTIONS = ("how many dogs are there?", "what is in it?")
TOLERANCE = 2e-3  # of logits: which of two as large is the largest, the order of a sum decides


@pytest.fixture
def sample(sample_of: Any) -> Any:
    return sample_of("instructblip", 1)


@pytest.fixture
def picture(conversations: dict[str, Any]) -> Image.Image:
    return conversations["one image"][0]


@contextmanager
def serving(bundle: Bundle, elsewhere: Any = None) -> Iterator[GenerativeModel]:
    pool = PreprocessPool(SETTINGS, elsewhere)
    model = GenerativeModel(bundle, SETTINGS, pool)
    model.start()
    try:
        yield model
    finally:
        model.close()
        pool.close()


def asking(picture: Image.Image, *texts: str, **changes: Any) -> GenerateRequest:
    """Return a conversation about a picture in its first message; user and assistant take turns."""
    file = BytesIO()
    picture.save(file, "PNG")
    messages = [Message(("user", "assistant")[number % 2], (TextPart(text),)) for number, text in enumerate(texts)]
    messages[0] = Message("user", (ImagePart(file.getvalue()), *messages[0].parts))
    sampling = SamplingParams(max_tokens=8, temperature=0.0, top_logprobs=1)
    return GenerateRequest("r", "tiny", tuple(messages), sampling, **changes)


async def chances_of(model: GenerativeModel, request: GenerateRequest) -> list[float]:
    """Return the log probability of each token of an answer, but for one that ends it."""
    events = [event async for event in model.generate(request)]
    return [token.logprob for event in events[:-1] for token in event.logprobs]


async def said_by(model: GenerativeModel, request: GenerateRequest) -> tuple[list[int], Usage]:
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids], events[-1].usage


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def is_greedy(sample: Any, inputs: Any, tokens: list[int]) -> bool:
    """Return whether transformers would say the same, up to what rounding decides."""
    logits = sample.logits(inputs, tokens[:-1])
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
    return bool((chosen > logits.max(axis=1) - TOLERANCE).all())


@pytest.mark.parametrize("family", ["instructblip", "florence2"])
def test_an_image_asked_two_questions_is_answered_as_by_transformers_whatever_is_kept(
    family: str, sample_of: Any, picture: Image.Image
) -> None:
    sample = sample_of(family, 1)

    async def main() -> None:
        with serving(sample.bundle()) as model:
            requests = [asking(picture, question) for question in QUESTIONS]
            together = await asyncio.gather(*(said_by(model, request) for request in requests))
            again = [await said_by(model, request) for request in requests[::-1]][::-1]
            for question, (tokens, first), (repeated, second) in zip(QUESTIONS, together, again, strict=True):
                assert tokens == repeated
                assert (first.cached_image_tokens, second.cached_image_tokens) == (0, second.image_tokens)
                assert bool(second.cached_tokens) == bool(second.image_tokens)  # no prompt is kept beside a memory
                inputs = sample.inputs([picture, question])
                assert is_greedy(sample, inputs, tokens)
                chances = await chances_of(model, asking(picture, question))
                expected = log_softmax(sample.logits(inputs, tokens[:-1]))[range(len(chances)), tokens[: len(chances)]]
                np.testing.assert_allclose(chances, expected, atol=TOLERANCE)
            assert not is_greedy(sample, sample.inputs([picture, QUESTIONS[1]]), together[0][0])

    asyncio.run(main())


def test_the_question_of_a_chat_is_its_last_message(sample: Any, picture: Image.Image) -> None:
    """The prompt holds all messages: its inputs are transformers' of the whole, its question's of the last alone."""
    request = asking(picture, QUESTIONS[0], "a cat", QUESTIONS[1])
    inputs = sample.inputs([picture, f"{QUESTIONS[0]} a cat {QUESTIONS[1]}"])
    last = sample.inputs([picture, QUESTIONS[1]])
    asked = {**inputs, **{name: last[name] for name in ("qformer_input_ids", "qformer_attention_mask")}}
    runner = VisionLanguageRunner(sample.bundle(), RuntimeSettings(intra_threads=1))
    turns = [*asked_turns(QUESTIONS[0]), Turn("assistant", ("a cat",)), Turn("user", (QUESTIONS[1],))]
    prefilled = runner.prefill(runner.prompt(turns, [picture]), 8)

    async def main() -> list[int]:
        with serving(sample.bundle()) as model:
            await said_by(model, asking(picture, QUESTIONS[0]))
            return (await said_by(model, request))[0]

    tokens = asyncio.run(main())
    assert tokens == runner.reply_ids(prefilled, 8)
    found = runner.forced_logits(prefilled, tokens)
    np.testing.assert_allclose(found, sample.logits(asked, tokens[:-1]), atol=1e-3)
    assert not np.allclose(found, sample.logits(inputs, tokens[:-1]), atol=1e-2)


def test_images_seen_without_a_question_are_seen_again_with_the_one_that_is_asked(
    sample: Any, picture: Image.Image
) -> None:
    runner, turns = VisionLanguageRunner(sample.bundle(), RuntimeSettings(intra_threads=1)), asked_turns(QUESTIONS[0])
    seen = runner.see([picture])
    blank = runner.prompt_about([*asked_turns(QUESTIONS[0]), Turn("user", ("",))], seen)
    prompts = (runner.prompt_about(turns, seen), runner.prompt(turns, [picture]), blank)
    about, at_once, otherwise = (runner.prefill(each, 1).logits for each in prompts)
    np.testing.assert_array_equal(about, at_once)
    assert not np.allclose(about, otherwise, atol=1e-2)


def asked_turns(text: str) -> list[Turn]:
    return [Turn("user", (Placeholder.IMAGE, text))]


def test_a_request_is_tokenized_as_it_is_answered(sample: Any, picture: Image.Image) -> None:
    request = asking(picture, QUESTIONS[0])

    async def main() -> int:
        with serving(sample.bundle()) as model:
            told = await model.tokenize(TokenizeRequest("r", "tiny", request.messages))
            _, usage = await said_by(model, request)
            assert usage.prompt_tokens == len(told.token_ids)
            return len(told.token_ids)

    assert asyncio.run(main()) == sample.inputs([picture, QUESTIONS[0]])["input_ids"].shape[1]


class Crossing:
    """Takes images to a host through a pickle."""

    def __init__(self, host: EncoderHost) -> None:
        self.host = host

    async def see(self, image: SentImage) -> Any:
        return await self.host.see(pickle.loads(pickle.dumps(image)))


@asynccontextmanager
async def hosted(bundle: Bundle) -> AsyncIterator[Crossing]:
    host = EncoderHost(bundle.directory, SETTINGS)
    await host.start()
    try:
        yield Crossing(host)
    finally:
        await host.close()


def test_an_encoder_in_another_process_reads_the_question_there(sample: Any, picture: Image.Image) -> None:
    async def main() -> None:
        async with hosted(sample.bundle()) as crossing:
            with serving(sample.bundle(), crossing) as model:
                for question in QUESTIONS:
                    tokens, _ = await said_by(model, asking(picture, question))
                    assert is_greedy(sample, sample.inputs([picture, question]), tokens)

    asyncio.run(main())


@pytest.mark.parametrize(
    "asked",
    [
        "<OD>",
        "<CAPTION>",
        "<OCR_WITH_REGION>",
        "<CAPTION_TO_PHRASE_GROUNDING> A cat and a dog.",
        "<REGION_TO_CATEGORY><loc_3><loc_4><loc_10><loc_11>",
        "<REFERRING_EXPRESSION_SEGMENTATION>the cat",
        "what is in it?",
    ],
)
def test_florence_reads_tasks_in_the_words_that_it_was_trained_on(
    asked: str, sample_of: Any, picture: Image.Image
) -> None:
    sample = sample_of("florence2", 0)
    reader = QuestionReader.from_bundle(sample.bundle())
    assert reader is not None
    rows = sample.processor.num_image_tokens
    assert list(reader.ids(asked_turns(asked))) == sample.inputs([picture, asked])["encoder_ids"][0, rows:].tolist()


def test_florence_refuses_what_its_processor_does_not_take(sample_of: Any) -> None:
    bundle = sample_of("florence2", 0).bundle()
    reader, prompts = QuestionReader.from_bundle(bundle), PromptBuilder.from_bundle(bundle)
    assert reader is not None
    with pytest.raises(PromptError, match=r"<OD> asks 'Locate the objects .*send it alone"):
        reader.ids(asked_turns("<OD> of cats"))
    assert 258 not in reader.ids(asked_turns("</s> in a text"))[1:-1]  # of a control token, its letters are read
    for turns, layouts, told in (
        ([Turn("user", ("hello",))], [], "hold 0 images"),
        ([Turn("user", (Placeholder.IMAGE, Placeholder.IMAGE, "x"))], [TileLayout()] * 2, "hold 2 images"),
        ([*asked_turns("a"), Turn("assistant", ("b",)), Turn("user", ("c",))], [TileLayout()], "knows no conversation"),
    ):
        with pytest.raises(PromptError, match=told):
            prompts.build(turns, layouts)
    with pytest.raises(PromptError, match="Send exactly one"):
        prompts.of_text("a text to go on with", max_tokens=50)
    with pytest.raises(PromptError, match="Send exactly one"):
        prompts.of_ids([5, 6])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_config": {"dim_embed": [128]}}, "take config.json and weights of one repository"),
        ({"vision_config": {"patch_padding": [2, 1]}}, "kernels of 7 padded by 2"),
        ({"vision_config": {"depths": [1]}}, "differ in length"),
        ({"vision_config": {"projection_dim": 8}}, "projection_dim"),
        ({"text_config": {"scale_embedding": True}}, "scale_embedding"),
        ({"text_config": {"decoder_start_token_id": 7}}, "decoder_start_token_id 7"),
        ({"text_config": {"max_position_embeddings": 17}}, "17 rows of an image leave no room for a question among 17"),
    ],
)
def test_florence_refuses_switches_that_are_not_built(
    change: dict[str, dict[str, Any]], told: str, sample_of: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(sample_of("florence2", 0).checkpoint, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    for part, values in change.items():
        config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedConfigError, match=re.escape(told)):
        export_checkpoint(folder, tmp_path / "bundle")


def test_prefixes_made_before_a_question_are_refused(sample: Any, picture: Image.Image) -> None:
    request = asking(picture, "look", "I see", fuses=True)

    async def main() -> None:
        with serving(sample.bundle()) as model, pytest.raises(ParameterError, match=r'the question.*method "plain"'):
            await said_by(model, request)

    asyncio.run(main())


def test_questions_are_cut_as_by_the_q_formers_own_tokenizer_and_bounded(sample: Any) -> None:
    reader = QuestionReader.from_bundle(sample.bundle())
    assert reader is not None
    told = [Turn("system", ("be brief",)), *asked_turns("What is in it?"), Turn("assistant", ("a cat",))]
    expected = sample.processor.qformer_tokenizer("What is in it?")["input_ids"]
    assert list(reader.ids(told)) == expected
    assert reader.ids([Turn("system", ("be brief",))]) == (2, 3)  # around nothing
    assert reader.ids(asked_turns("[SEP] x")).count(3) == 1  # of a control token, its letters are read
    assert len(reader.ids(asked_turns("y" * 46))) == 48
    with pytest.raises(ContextLengthError, match=r"the question takes 49 tokens.*holds 48.*Shorten"):
        reader.ids(asked_turns("y" * 47))
    with pytest.raises(ContextLengthError, match=r"^the question, .* holds 1000 characters; 48 tokens.*Shorten"):
        reader.ids(asked_turns("y" * 1000))


def test_an_encoder_that_was_given_no_question_says_so(sample: Any, picture: Image.Image) -> None:
    encoder = open_encoder(sample.bundle(), "vision_encoder", RuntimeSettings(intra_threads=1))
    with pytest.raises(SignatureError, match="takes question_ids beside pixels"):
        encode_images(encoder, [(np.zeros((1, 3, 30, 30), np.float32),)], 4)


def test_encoders_are_calibrated_on_images_with_their_questions(sample: Any, picture: Image.Image) -> None:
    questions = [scenes.Example("t", (picture,), (scenes.Turn(text, "yes"),)) for text in QUESTIONS]
    feeds = FeedSource(sample.bundle(), Evaluation(questions=questions)).of("vision_encoder")
    words = [sample.processor.qformer_tokenizer(text)["input_ids"] for text in QUESTIONS]
    assert [feed["question_ids"].tolist() for feed in feeds] == [[ids] for ids in words]


def test_what_does_not_go_with_questions_is_refused(sample: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="reads questions of any length"):
        quantize_bundle(sample.bundle().directory, tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
    with pytest.raises(UnsupportedConfigError, match="--task embed: what instructblip sees"):
        export_checkpoint(sample.checkpoint, tmp_path / "vectors", embedding=EmbeddingOptions())


def test_a_checkpoint_without_its_question_tokenizer_or_with_anothers_is_refused(sample: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(sample.checkpoint, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    words = json.loads((folder / "qformer_tokenizer" / "tokenizer.json").read_text())
    words["model"]["vocab"]["late"] = config["qformer_config"]["vocab_size"]
    (folder / "qformer_tokenizer" / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UnsupportedConfigError, match=r"qformer_tokenizer/tokenizer.json gives 'late' the id"):
        export_checkpoint(folder, tmp_path / "bundle")
    shutil.rmtree(folder / "qformer_tokenizer")
    with pytest.raises(CheckpointError, match=r"qformer_tokenizer/tokenizer.json is missing"):
        export_checkpoint(folder, tmp_path / "bundle")


def test_the_question_tokenizer_of_a_hub_id_is_fetched_too(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append((name, allow_patterns))
        return str(sample.checkpoint)

    monkeypatch.setattr("export.exporter.snapshot_download", fetch)
    export_checkpoint("some/instructblip", tmp_path / "bundle")
    assert asked[1:] == [("some/instructblip", ["qformer_tokenizer/*.json"])]


@pytest.mark.parametrize("family", ["instructblip", "florence2"])
def test_built_in_samples_are_those_that_the_model_takes(family: str, sample_of: Any) -> None:
    """Florence-2 answers about one image; a Q-Former reads so many words, and none where there is no image."""
    bundle = sample_of(family, 0).bundle()
    samples = built_in_samples(bundle, "calibration")
    source = FeedSource(bundle, samples)
    assert len(source.of("decoder")) == len(samples.questions)
    assert source.of("vision_encoder")
    shows = {bool(question.images) for question in samples.questions}
    assert shows == ({True, False} if family == "instructblip" else {True})
