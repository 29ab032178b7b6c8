"""Greedy answers to interleaved images and to a video, against transformers' own model, processor and words."""

import asyncio
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.frames.options import FrameOptions
from serving.models.generative import GenerativeModel
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=48)
TOKENS = 4
MAX_TOKENS = 24


@pytest.fixture
def model(smolvlm_bundle, pool):
    """The tiny SmolVLM, whose prompts have the words of SmolVLM's processor around frames."""
    manifest = open_bundle(smolvlm_bundle).manifest
    told = manifest.image_prompt.model_copy(update={"frames": "smolvlm"})
    model = GenerativeModel(Bundle(smolvlm_bundle, manifest.model_copy(update={"image_prompt": told})), SETTINGS, pool)
    model.start()
    yield model
    model.close()


@pytest.fixture(scope="module")
def processor_of(smolvlm_checkpoint) -> Callable[[bool], object]:
    """The function that makes transformers' processor, which cuts images into tiles or does not."""
    pytest.importorskip("torch")
    from transformers import Idefics3Processor
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def make(splits: bool) -> object:
        images = Idefics3ImageProcessorPil.from_pretrained(smolvlm_checkpoint)
        if not splits:
            images.do_image_splitting = False
            images.size = images.max_image_size
        return Idefics3Processor(
            images,
            AutoTokenizer.from_pretrained(smolvlm_checkpoint),
            image_seq_len=TOKENS,
            chat_template=(smolvlm_checkpoint / "chat_template.jinja").read_text(),
        )

    return make


@pytest.fixture(scope="module")
def transformers_model(smolvlm_checkpoint):
    pytest.importorskip("torch")
    from transformers import SmolVLMForConditionalGeneration

    return SmolVLMForConditionalGeneration.from_pretrained(smolvlm_checkpoint).eval()


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def answered(model, answer, messages):
    request = GenerateRequest("r", "tiny-smolvlm", tuple(messages), SamplingParams(max_tokens=MAX_TOKENS))
    return asyncio.run(asyncio.wait_for(answer(model, request), 60))


IMAGES = [noise(0, (70, 50)), noise(1, (20, 20)), noise(2, (33, 90))]
SAID = ("compare", 0, "with", 1, "please"), ("I see",), (2, "and this?")
"""A conversation: texts, and numbers of images."""


def test_interleaved_images_over_several_turns_are_answered_as_transformers_does(
    model, answer, processor_of, transformers_model, check_greedy
) -> None:
    roles = ("user", "assistant", "user")
    messages = [
        Message(role, tuple(TextPart(p) if isinstance(p, str) else ImagePart(png(IMAGES[p])) for p in parts))
        for role, parts in zip(roles, SAID, strict=True)
    ]
    found = answered(model, answer, messages)
    processor = processor_of(True)
    turns = [
        {
            "role": role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts],
        }
        for role, parts in zip(roles, SAID, strict=True)
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=text, images=IMAGES, return_tensors="pt")
    assert found.finished.usage.prompt_tokens == inputs["input_ids"].shape[1]
    check_greedy(transformers_model, inputs, found.token_ids, MAX_TOKENS)


def test_a_video_is_answered_as_transformers_does(
    model, answer, processor_of, transformers_model, check_greedy
) -> None:
    """With the processor's words and times, and frames as its images that are not cut.

    The tiny checkpoint's template puts a blank before each text, so the words are parts of the message here, too.
    """
    processing = pytest.importorskip("transformers.models.smolvlm.processing_smolvlm")
    pytest.importorskip("num2words", reason="the processor wants it")
    frames = [noise(seed, (64, 40)) for seed in range(3)]
    video = VideoPart(tuple(map(png, frames)), FrameOptions(list_fps=0.5))
    found = answered(model, answer, [Message("user", (video, TextPart("what happens?")))])

    processor = processor_of(False)
    metadata = SimpleNamespace(fps=0.5, timestamps=[0.0, 2.0, 4.0], duration=6.0)
    words = processing.SmolVLMProcessor.replace_video_token(
        SimpleNamespace(image_seq_len=0, image_token="", fake_image_token="", global_image_token="<image>"),
        {"pixel_values": SimpleNamespace(shape=(1, 3)), "video_metadata": [metadata]},
        0,
    )
    intro, words = words.partition("\n")[::2]
    pieces = [{"type": "text", "text": intro + "\n"}]
    for piece in words.split("<image>"):
        pieces += [{"type": "text", "text": piece}, {"type": "image"}]
    turn = {"role": "user", "content": [*pieces[:-1], {"type": "text", "text": "what happens?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = processor(text=text, images=frames, return_tensors="pt")
    assert found.finished.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert found.finished.usage.image_tokens == 3 * TOKENS
    check_greedy(transformers_model, inputs, found.token_ids, MAX_TOKENS)
