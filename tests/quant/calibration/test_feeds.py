from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import QuantizationError
from bundle.image import PREPROCESSOR, ImageSpec
from quant.calibration import feeds
from quant.calibration.feeds import FeedSource, spread
from quant.quality.evaluation import Evaluation, turns_of
from runtime.one_embedding import DualEncoderRunner
from runtime.one_request import VisionLanguageRunner
from runtime.session import Session
from runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(intra_threads=1)


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def source_of(bundle: Path, samples: Evaluation, num_samples: int = 64) -> FeedSource:
    return FeedSource(open_bundle(bundle), samples, num_samples, SETTINGS)


def test_samples_are_spread_over_the_list() -> None:
    assert spread("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert spread("abc", 2) == ["a", "b"]
    assert spread("abc", 9) == ["a", "b", "c"]
    assert spread("", 3) == []


def test_the_decoder_is_fed_what_gives_the_logits_of_the_right_answer(smolvlm_bundle: Path, asked: type) -> None:
    bundle, question = open_bundle(smolvlm_bundle), asked("blue", (noise(40, 30, 0),))
    (fed,) = source_of(smolvlm_bundle, Evaluation(questions=[question])).of("decoder")
    runner = VisionLanguageRunner(bundle, SETTINGS)
    ids = runner.answer_ids("blue")
    length = fed["inputs_embeds"].shape[1]
    # The last token of the answer is foretold, never fed: the positions end one before it.
    assert fed["logits_indices"].tolist() == [list(range(length - len(ids), length))]
    assert fed["position_ids"].tolist() == [list(range(length))]
    assert fed["past_lengths"].tolist() == [[0]]
    together = Session(bundle, "decoder", SETTINGS).run(fed)["logits"][0]
    one_by_one = runner.answer_logits(runner.prompt(turns_of(question), question.images), ids)
    # Logits of about 1 in float32: all tokens in one run, or one run each, by other kernels.
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-4)


def test_tiles_of_all_images_are_real_and_bounded(
    smolvlm_bundle: Path, monkeypatch: pytest.MonkeyPatch, asked: type
) -> None:
    monkeypatch.setattr(feeds, "MOST_TILES", 6)
    images = [noise(128, 128, seed) for seed in range(3)]
    spec = ImageSpec.read(smolvlm_bundle / PREPROCESSOR)
    tiles = [spec.preprocess([image]).pixel_values for image in images]
    assert all(len(each) == 17 for each in tiles)
    questions = [asked("a", (image,)) for image in images]
    found = [
        each["pixel_values"] for each in source_of(smolvlm_bundle, Evaluation(questions=questions)).of("vision_encoder")
    ]
    assert [each.shape[0] for each in found] == [1] * 6
    places = [
        [at for at, tile in enumerate(tiles[n // 2]) if np.array_equal(tile, each[0])] for n, each in enumerate(found)
    ]
    assert places == [[0], [8], [1], [9], [2], [10]]


def test_a_question_without_images_adds_no_tile(smolvlm_bundle: Path, asked: type) -> None:
    questions = [asked("a"), asked("b", (noise(20, 20, 0),))]
    found = source_of(smolvlm_bundle, Evaluation(questions=questions)).of("vision_encoder")
    spec = ImageSpec.read(smolvlm_bundle / PREPROCESSOR)
    assert len(found) == spec.layout(20, 20).num_tiles


def test_captions_are_fed_alone_and_unpadded(clip_bundle: Path, captioned: type) -> None:
    texts = ["a", "a long caption of many letters"]
    captions = [captioned(noise(9, 9, 0), text) for text in texts]
    source = source_of(clip_bundle, Evaluation(captions=captions))
    runner = DualEncoderRunner(source.bundle, SETTINGS)
    fed = source.of("text_encoder")
    assert [each["input_ids"].shape[0] for each in fed] == [1, 1]
    assert fed[0]["input_ids"].shape[1] < fed[1]["input_ids"].shape[1]
    assert all(each["attention_mask"].all() for each in fed)
    for each, text in zip(fed, texts, strict=True):
        np.testing.assert_array_equal(each["input_ids"], runner.text_feeds(text)["input_ids"])
    assert len(source.of("vision_encoder")) == 2


def test_no_more_samples_are_taken_than_asked_for(clip_bundle: Path, captioned: type) -> None:
    captions = [captioned(noise(9, 9, seed), "a" * (1 + seed)) for seed in range(5)]
    source = source_of(clip_bundle, Evaluation(captions=captions), num_samples=2)
    lengths = [each["input_ids"].shape[1] for each in source.of("text_encoder")]
    assert lengths[1] - lengths[0] == 2  # the first and the third
    assert len(source.of("vision_encoder")) == 2


def test_samples_of_the_wrong_kind_are_refused(
    smolvlm_bundle: Path, clip_bundle: Path, asked: type, captioned: type
) -> None:
    captions, questions = Evaluation(captions=[captioned(noise(9, 9, 0), "a")]), Evaluation(questions=[asked("a")])
    for component in ("decoder", "vision_encoder"):
        with pytest.raises(QuantizationError, match="hold no questions, which a vision-language model is"):
            source_of(smolvlm_bundle, captions).of(component)
    for component in ("text_encoder", "vision_encoder"):
        with pytest.raises(QuantizationError, match="hold no captions, which a dual encoder is"):
            source_of(clip_bundle, questions).of(component)
    with pytest.raises(QuantizationError, match="hold no images"):
        source_of(smolvlm_bundle, questions).of("vision_encoder")


def test_a_graph_without_linear_layers_has_no_inputs_to_calibrate_on(smolvlm_bundle: Path, asked: type) -> None:
    with pytest.raises(QuantizationError, match="embed_tokens has no inputs"):
        source_of(smolvlm_bundle, Evaluation(questions=[asked("a")])).of("embed_tokens")
