"""Images encoded smaller, through a whole model: what is read, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import Bundle, open_bundle
from bundle.errors import ParameterError
from bundle.frames.options import FrameOptions
from bundle.image import ImageSpec
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from quant.visual_tokens.resize import Resize
from runtime.one_request import VisionLanguageRunner
from serving.models.cards import card_of
from serving.models.generative import GenerativeModel
from serving.protocol import GenerateRequest, ImagePart, Message, SamplingParams, TextPart, VideoPart, VisionReduction
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1)


@pytest.fixture(scope="module")
def any_size(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("any") / "tiny-smolvlm"
    export_checkpoint(smolvlm_checkpoint, folder, smaller_images=True)
    return open_bundle(folder)


@pytest.fixture
def model(any_size: Bundle, pool):
    model = GenerativeModel(any_size, SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def asked(*parts: str | bytes | VideoPart, keep: float | None = 0.25, method: str = "resize") -> GenerateRequest:
    made = (TextPart(p) if isinstance(p, str) else ImagePart(p) if isinstance(p, bytes) else p for p in parts)
    vision = None if keep is None else VisionReduction(method, keep)
    sampling = SamplingParams(max_tokens=8, temperature=0, ignores_eos=True)
    return GenerateRequest("r", "tiny-smolvlm", (Message("user", tuple(made)),), sampling, vision=vision)


def test_the_encoder_sees_fewer_pixels_and_the_decoder_fewer_tokens(model, answer, image_bytes, monkeypatch) -> None:
    sizes: list[tuple[int, ...]] = []
    encode = model._vision.session.run

    def seen(feeds, *rest):
        sizes.extend(array.shape for array in feeds.values())
        return encode(feeds, *rest)

    monkeypatch.setattr(model._vision.session, "run", seen)

    async def main() -> None:
        usage = (await answer(model, asked(image_bytes(1), "what?"))).finished.usage
        assert usage.kept_image_tokens * 4 == usage.image_tokens
        assert usage.cached_image_tokens == 0
        [smaller] = {shape[-1] for shape in sizes}
        assert smaller * 2 == model._vision._spec.tile_size_px[0]
        again = (await answer(model, asked(image_bytes(1), "why?"))).finished.usage
        assert again.cached_image_tokens == again.image_tokens == usage.image_tokens
        whole = (await answer(model, asked(image_bytes(1), "what?", keep=None))).finished.usage
        assert whole.cached_image_tokens == 0  # features of another size are no hit
        assert whole.kept_image_tokens == whole.image_tokens == usage.image_tokens

    run(main)


def test_alone_and_among_others_it_is_answered_alike(model, answer, image_bytes) -> None:
    requests = [asked(image_bytes(seed), "what?", keep=keep) for seed in (1, 2) for keep in (0.25, None, 0.6, 1)]

    async def main() -> None:
        alone = [await answer(model, request) for request in requests]
        model._pool.features.clear()
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        assert [each.token_ids for each in together] == [each.token_ids for each in alone]
        assert alone[1].token_ids == alone[3].token_ids  # all of it is the request that says nothing
        assert len({each.token_ids for each in alone}) > 2

    run(main)


def test_one_request_from_arrays_says_the_same(any_size, model, answer, image_bytes) -> None:
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(image_bytes(3))).convert("RGB")
    runner = VisionLanguageRunner(any_size, SETTINGS)
    turns = [Turn("user", (Placeholder.IMAGE, "what?"))]
    prompt = runner.prompt_about(turns, runner.see([image]), Resize(0.25))

    async def main() -> None:
        found = await answer(model, asked(image_bytes(3), "what?"))
        assert found.finished.usage.prompt_tokens == prompt.num_tokens
        assert found.token_ids[0] == int(np.argmax(runner.prefill(prompt, 8).logits))

    run(main)


def test_what_cannot_be_resized_is_refused_by_name(model, answer, smolvlm_bundle, pool) -> None:
    from io import BytesIO

    from PIL import Image

    file, frames = BytesIO(), [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    fixed = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)

    async def main() -> None:
        video = VideoPart((file.getvalue(),), FrameOptions())
        with pytest.raises(ParameterError, match="'resize' is of images; frames of a video"):
            await answer(model, asked(video, "what?"))
        with pytest.raises(ParameterError, match=r"vision\.keep is 0"):
            await answer(model, asked("what?", keep=0))
        with pytest.raises(ParameterError, match=r"takes tiles of one size.*--smaller-images"):
            await answer(fixed, asked("what?"))

    try:
        run(main)
    finally:
        fixed.close()


def test_it_is_offered_where_it_can_be_done(any_size, smolvlm_bundle) -> None:
    assert "resize" in card_of(any_size.manifest, SETTINGS).vision_methods
    assert "resize" not in card_of(open_bundle(smolvlm_bundle).manifest, SETTINGS).vision_methods


def test_tokens_are_counted_as_an_answer_would_read_them(model, answer, image_bytes) -> None:
    from serving.protocol import TokenizeRequest

    async def main() -> None:
        request = asked(image_bytes(4), "what?", keep=0.5)
        told = await model.tokenize(TokenizeRequest("t", "tiny-smolvlm", request.messages, vision=request.vision))
        usage = (await answer(model, dataclasses.replace(request))).finished.usage
        assert len(told.token_ids) == usage.prompt_tokens

    run(main)


def test_tiles_are_scaled_and_stay_as_many(any_size) -> None:
    from PIL import Image

    from bundle.image import PREPROCESSOR

    spec = ImageSpec.read(any_size.path(PREPROCESSOR))
    tiles = spec.cut(Image.new("RGB", (3 * spec.tile_size_px[0], spec.tile_size_px[0]), "red"))
    smaller = spec.smaller(tiles, 8)
    assert [tile.size for tile in smaller] == [(8, 8)] * len(tiles)
