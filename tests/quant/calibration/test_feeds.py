from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.image import ImageSpec
from quant.calibration import feeds
from quant.calibration.feeds import FeedSource, spread
from quant.quality.evaluation import Evaluation
from runtime.one_request import DualEncoderRunner, VisionLanguageRunner


@dataclass(frozen=True)
class Asked:
    answer: str
    images: tuple[Image.Image, ...] = ()
    task: str = "any"

    def messages(self) -> list[dict[str, object]]:
        image = [{"type": "image"} for _ in self.images]
        return [{"role": "user", "content": [*image, {"type": "text", "text": "What?"}]}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def source_of(bundle: Path, samples: Evaluation, num_samples: int = 64) -> FeedSource:
    return FeedSource(bundle, read_manifest(bundle), samples, num_samples, threads=1)


def test_samples_are_spread_over_the_list() -> None:
    assert spread("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert spread("abc", 2) == ["a", "b"]
    assert spread("abc", 9) == ["a", "b", "c"]
    assert spread("", 3) == []


def test_the_decoder_is_fed_what_gives_the_logits_of_the_right_answer(smolvlm_bundle: Path) -> None:
    question = Asked("blue", (noise(40, 30, 0),))
    fed = source_of(smolvlm_bundle, Evaluation(questions=[question])).of("decoder")
    runner = VisionLanguageRunner(smolvlm_bundle, read_manifest(smolvlm_bundle), threads=1)
    num_answer = len(runner.answer_ids("blue"))
    assert len(fed) == 1
    assert fed[0]["logits_indices"].shape == (1, num_answer)
    length = fed[0]["inputs_embeds"].shape[1]
    # The last token of the answer is foretold, never fed: the positions end one before it.
    assert fed[0]["logits_indices"][0].tolist() == list(range(length - num_answer, length))


def test_tiles_of_all_images_are_real_and_bounded(smolvlm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MOST_TILES", 6)
    images = [noise(128, 128, seed) for seed in range(3)]
    spec = ImageSpec.from_bundle(smolvlm_bundle)
    tiles = [spec.preprocess([image]).pixel_values for image in images]
    assert all(len(each) == 17 for each in tiles)
    questions = [Asked("a", (image,)) for image in images]
    found = [
        each["pixel_values"] for each in source_of(smolvlm_bundle, Evaluation(questions=questions)).of("vision_encoder")
    ]
    assert [each.shape[0] for each in found] == [1] * 6
    places = [
        [at for at, tile in enumerate(tiles[n // 2]) if np.array_equal(tile, each[0])] for n, each in enumerate(found)
    ]
    assert places == [[0], [8], [1], [9], [2], [10]]


def test_a_question_without_images_adds_no_tile(smolvlm_bundle: Path) -> None:
    questions = [Asked("a"), Asked("b", (noise(20, 20, 0),))]
    found = source_of(smolvlm_bundle, Evaluation(questions=questions)).of("vision_encoder")
    spec = ImageSpec.from_bundle(smolvlm_bundle)
    assert len(found) == spec.layout(20, 20).num_tiles


def test_captions_are_fed_alone_and_unpadded(clip_bundle: Path) -> None:
    texts = ["a", "a long caption of many letters"]
    captions = [Captioned(noise(9, 9, 0), text) for text in texts]
    source = source_of(clip_bundle, Evaluation(captions=captions))
    runner = DualEncoderRunner(clip_bundle, source.manifest, threads=1)
    fed = source.of("text_encoder")
    assert [each["input_ids"].shape[0] for each in fed] == [1, 1]
    assert fed[0]["input_ids"].shape[1] < fed[1]["input_ids"].shape[1]
    assert all(each["attention_mask"].all() for each in fed)
    for each, text in zip(fed, texts, strict=True):
        np.testing.assert_array_equal(each["input_ids"], runner.text_feeds([text])["input_ids"])
    assert len(source.of("vision_encoder")) == 2


def test_no_more_samples_are_taken_than_asked_for(clip_bundle: Path) -> None:
    captions = [Captioned(noise(9, 9, seed), "a" * (1 + seed)) for seed in range(5)]
    source = source_of(clip_bundle, Evaluation(captions=captions), num_samples=2)
    lengths = [each["input_ids"].shape[1] for each in source.of("text_encoder")]
    assert lengths[1] - lengths[0] == 2  # the first and the third
    assert len(source.of("vision_encoder")) == 2


def test_samples_of_the_wrong_kind_are_refused(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    captions, questions = Evaluation(captions=[Captioned(noise(9, 9, 0), "a")]), Evaluation(questions=[Asked("a")])
    for component in ("decoder", "vision_encoder"):
        with pytest.raises(QuantizationError, match="hold no questions, which a vision-language model is"):
            source_of(smolvlm_bundle, captions).of(component)
    for component in ("text_encoder", "vision_encoder"):
        with pytest.raises(QuantizationError, match="hold no captions, which a dual encoder is"):
            source_of(clip_bundle, questions).of(component)
    with pytest.raises(QuantizationError, match="hold no images"):
        source_of(smolvlm_bundle, questions).of("vision_encoder")


def test_a_graph_without_linear_layers_has_no_inputs_to_calibrate_on(smolvlm_bundle: Path) -> None:
    with pytest.raises(QuantizationError, match="embed_tokens has no inputs"):
        source_of(smolvlm_bundle, Evaluation(questions=[Asked("a")])).of("embed_tokens")
