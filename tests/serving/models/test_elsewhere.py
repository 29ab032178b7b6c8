"""A model whose vision encoder is in another process: what crosses is pickled here, as on the way there."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import EngineDeadError, ImageError, MachineError
from serving.models.client import LocalClient
from serving.models.elsewhere import AbsentEncoder, Features, SentImage
from serving.models.encoder_host import EncoderHost
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
    TokenEvent,
    VisionReduction,
)
from serving.settings import EngineSettings

SETTINGS = EngineSettings(intra_threads=1, max_sequences=2)


def picture(seed: int, height_px: int = 40) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, 90, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Crossing:
    """Takes images to a host and features back through pickles, and counts."""

    def __init__(self, host: EncoderHost) -> None:
        self.host = host
        self.num_seen = 0
        self.failure: Exception | None = None

    async def see(self, image: SentImage) -> Features:
        self.num_seen += 1
        if self.failure is not None:
            raise self.failure
        buffers: list[pickle.PickleBuffer] = []
        sent = pickle.dumps(image, protocol=5, buffer_callback=buffers.append)
        assert len(sent) < 2000  # the pixels are not in it
        return pickle.loads(pickle.dumps(await self.host.see(pickle.loads(sent, buffers=buffers))))


@asynccontextmanager
async def composed(bundle: Path, settings: EngineSettings = SETTINGS) -> AsyncIterator[tuple[LocalClient, Crossing]]:
    host = EncoderHost(bundle, settings)
    await host.start()
    crossing = Crossing(host)
    try:
        async with LocalClient([bundle], settings, elsewhere=crossing) as client:
            yield client, crossing
    finally:
        await host.close()


async def answer(client: LocalClient, *images: bytes, keep: float = 1.0) -> tuple[list[int], FinishedEvent]:
    parts = (*(ImagePart(image) for image in images), TextPart("what?"))
    sampling = SamplingParams(max_tokens=6, temperature=0)
    reduction = VisionReduction("visionzip", keep)
    request = GenerateRequest("r", "tiny-smolvlm", (Message("user", parts),), sampling, vision=reduction)
    events = [event async for event in client.generate(request)]
    tokens = [token for event in events if isinstance(event, TokenEvent) for token in event.token_ids]
    assert isinstance(events[-1], FinishedEvent)
    return tokens, events[-1]


@pytest.mark.parametrize("keep", [1.0, 0.5], ids=["whole", "chosen by the tower's attention"])
def test_answers_are_those_of_a_model_that_has_its_encoder(smolvlm_bundle: Path, keep: float) -> None:
    """One image is cut into tiles, one is small: both forms cross."""

    async def main() -> None:
        images = picture(0, 400), picture(1)
        async with LocalClient([smolvlm_bundle], SETTINGS) as whole:
            expected, _ = await answer(whole, *images, keep=keep)
        async with composed(smolvlm_bundle) as (client, crossing):
            told, _ = await answer(client, *images, keep=keep)
        assert (told, crossing.num_seen) == (expected, 2)

    asyncio.run(main())


def test_an_image_crosses_once_however_often_it_is_asked_about(smolvlm_bundle: Path) -> None:
    async def main() -> None:
        async with composed(smolvlm_bundle) as (client, crossing):
            first, told = await answer(client, picture(2))
            assert told.usage.cached_image_tokens == 0
            again, told = await answer(client, picture(2))
            assert told.usage.cached_image_tokens == told.usage.image_tokens
        assert (first, crossing.num_seen) == (again, 1)

    asyncio.run(main())


def test_what_a_host_has_encoded_for_one_generator_is_kept_for_the_others(smolvlm_bundle: Path) -> None:
    async def main() -> None:
        async with composed(smolvlm_bundle) as (client, crossing):
            await answer(client, picture(3))
            async with LocalClient([smolvlm_bundle], SETTINGS, elsewhere=crossing) as other:
                await answer(other, picture(3))
            gauges = (await crossing.host.health()).model_gauges["tiny-smolvlm"]
        assert (gauges["image_cache_hits"], gauges["num_requests_running"]) == (1.0, 0.0)

    asyncio.run(main())


def test_a_failure_of_the_encoder_fails_the_request_and_not_the_next(smolvlm_bundle: Path) -> None:
    async def main() -> None:
        async with composed(smolvlm_bundle) as (client, crossing):
            crossing.failure = EngineDeadError("it is gone")
            with pytest.raises(EngineDeadError, match="it is gone"):
                await answer(client, picture(4))
            crossing.failure = None
            await answer(client, picture(4))
            with pytest.raises(ImageError):
                await answer(client, b"no image")

    asyncio.run(main())


def test_a_host_tells_what_it_is_before_it_serves_and_after(smolvlm_bundle: Path) -> None:
    async def main() -> None:
        host = EncoderHost(smolvlm_bundle, SETTINGS)
        assert (await host.health()).reason == "the encoder is being loaded"
        with pytest.raises(EngineDeadError, match="not loaded"):
            await host.see(None)  # type: ignore[arg-type]  # nothing is looked at
        await host.start()
        assert (await host.health()).is_ready
        await host.close()
        assert not (await host.health()).is_ready

    asyncio.run(main())


def test_nothing_of_the_encoder_is_loaded_here(smolvlm_bundle: Path) -> None:
    absent = AbsentEncoder(open_bundle(smolvlm_bundle), "vision_encoder")
    assert absent.output == "image_features"
    for use in (lambda: absent.graph, lambda: absent.run({})):
        with pytest.raises(MachineError, match=r"vision_encoder\.onnx runs in another process"):
            use()
