"""Models whose processor writes the prompt itself: a chat says the same, token by token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import Image

from bundle.grounding import PatchGrounding
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import TOKENIZER, Tokenizer
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import GenerateRequest, Message, SamplingParams, TextPart, TokenEvent
from serving.settings import EngineSettings


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ("", {}),
        (" OCR: ", {}),
        (" OCR with format: ", {"format": True}),
        ("[red]  OCR: ", {"color": "red"}),
        ("[100, 20, 500, 350] OCR: ", {"box": [30, 4, 150, 70]}),
        ("", {"multi_page": True}),
        (" OCR with format across multi pages: ", {"multi_page": True, "format": True}),
    ],
)
def test_got_asks_as_its_processor_does(asked: str, options: dict[str, Any], sample_of: Any) -> None:
    bundle, processor = sample_of("got_ocr2", 0).bundle(), sample_of("got_ocr2", 0).processor
    pages = [Image.new("RGB", (300, 200)), Image.new("RGB", (80, 90))][: 1 + ("multi_page" in options)]
    expected = processor(images=pages, **options)["input_ids"][0]
    spec = ImageSpec.read(bundle.path(PREPROCESSOR))
    turn = Turn("user", (*(Placeholder.IMAGE for _ in pages), *([asked] if asked else [])))
    found = PromptBuilder.from_bundle(bundle).build([turn], [spec.layout(*page.size) for page in pages])
    assert found.token_ids.tolist() == list(expected)


def test_got_that_cuts_asks_by_its_patches_and_ends_where_its_users_do(sample_of: Any) -> None:
    sample = sample_of("got_ocr2", 1)
    page = Image.new("RGB", (100, 40))
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    found = PromptBuilder.from_bundle(sample.bundle()).build(
        [Turn("user", (Placeholder.IMAGE,))], [spec.layout(*page.size)]
    )
    assert found.token_ids.tolist() == list(sample.processor(images=page, crop_to_patches=True)["input_ids"][0])
    tokenizer = sample.processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    assert list(sample.bundle().manifest.eos_token_ids) == ends


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([Turn("user", (Placeholder.IMAGE,))], ""),
        (
            [Turn("user", (Placeholder.IMAGE, "which city?")), Turn("assistant", ("rome",)), Turn("user", ("why?",))],
            "Question: which city? Answer: rome Question: why? Answer:",
        ),
    ],
)
def test_blip_2_reads_images_before_the_token_that_begins_a_text(turns: list[Turn], said: str, sample_of: Any) -> None:
    sample = sample_of("blip_2", 0)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    found = PromptBuilder.from_bundle(sample.bundle()).build(turns, [spec.layout(30, 20)])
    expected = sample.processor(images=[Image.new("RGB", (30, 20))], text=said)["input_ids"][0]
    assert found.token_ids.tolist() == expected


def test_documents_are_said_with_their_markup_and_without_control_tokens(sample_of: Any) -> None:
    sample = sample_of("docling_258m", 0)
    said = "<doctag><section_header_level_1><loc_3><loc_7>Ab</text><nl></doctag>"
    control = "<|start_of_role|><image><row_1_col_2><global-img><fake_token_around_image><end_of_utterance><|pad|>"
    tokenizer = Tokenizer.from_file(sample.bundle().path(TOKENIZER))
    ids = sample.processor.tokenizer(control + said)["input_ids"]
    assert tokenizer.encode(control + said) == ids
    assert tokenizer.decode(ids) == said


def test_kosmos_goes_on_with_a_text_and_describes_an_image_alone(sample_of: Any) -> None:
    sample = sample_of("kosmos2", 0)
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    for said in ("<grounding> An image of", "<grounding><phrase> it</phrase><object><patch_index_0004>", ""):
        found = PromptBuilder.from_bundle(sample.bundle()).build(
            [Turn("user", (Placeholder.IMAGE, *([said] if said else [])))], [spec.layout(30, 20)]
        )
        asked = sample.processor(images=[Image.new("RGB", (30, 20))], text=said or "An image of")
        assert found.token_ids.tolist() == asked["input_ids"][0].tolist()


def test_kosmos_says_boxes_with_its_last_piece(sample_of: Any) -> None:
    bundle = sample_of("kosmos2", 0).bundle()
    assert bundle.manifest.grounding == PatchGrounding(side=4)
    sampling = SamplingParams(max_tokens=9, temperature=0.0, stop=())
    request = GenerateRequest("r", "tiny", (Message("user", (TextPart("A"),)),), sampling)

    async def said() -> list[TokenEvent]:
        settings = EngineSettings(max_sequences=1, intra_threads=1)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            return [event async for event in model.generate(request) if isinstance(event, TokenEvent)]
        finally:
            model.close()
            pool.close()

    *pieces, last = asyncio.run(said())
    assert all(piece.grounded is None for piece in pieces)
    assert last.grounded == bundle.manifest.grounding.read("".join(piece.text for piece in (*pieces, last)))
