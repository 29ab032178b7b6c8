"""Models on a device that replays what it captured: loaded one beside the other, each with threads of its own."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.cuda_bundle import export_for_cuda
from serving.models.client import LocalClient
from serving.settings import EngineSettings

SETTINGS = EngineSettings(
    provider="cuda",
    max_sequences=3,
    max_waiting=8,
    intra_threads=1,
    prefill_chunk_tokens=32,
    context_tokens=256,
    allow_ungated=True,
)


@pytest.fixture(scope="module")
def exported(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "tiny"
    export_for_cuda(smolvlm_checkpoint, folder, name="tiny")
    return folder


def png(seed: int) -> bytes:
    pixels, target = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), np.uint8), BytesIO()
    Image.fromarray(pixels).save(target, "png")
    return target.getvalue()


def served(bundle: Path, ask: Any, answer: Any, *, with_another: bool) -> list[list[int]]:
    """Return the tokens of answers about two images; the first is asked of again while another model is loaded."""

    async def answered(client: LocalClient, seed: int) -> list[int]:
        words = {"max_tokens": 8, "ignores_eos": True, "temperature": 0}
        request = ask(png(seed), "What is it?", model="tiny", **words)
        return list((await answer(client, request)).token_ids)

    async def load_another() -> None:
        async with LocalClient([bundle], SETTINGS) as other:
            await answered(other, 0)

    async def main() -> list[list[int]]:
        async with LocalClient([bundle], SETTINGS) as client:
            loading = asyncio.create_task(load_another() if with_another else asyncio.sleep(0))
            found = [await answered(client, 0)]
            while not loading.done():
                assert await answered(client, 0) == found[0]
            await loading
            await asyncio.gather(*(answered(client, seed) for seed in range(3)))  # steps of several sizes
            return [*found, await answered(client, 1)]

    return asyncio.run(asyncio.wait_for(main(), 500))


def test_a_model_is_captured_beside_one_that_answers(exported: Path, ask: Any, answer: Any, frozen_device: Any) -> None:
    """A capture without the device to itself, or memory touched beside one, is an error of that device."""
    beside, alone = (served(exported, ask, answer, with_another=each) for each in (True, False))
    assert beside == alone
    assert frozen_device.num_captured > 0
    assert frozen_device.num_replayed > 3 * 8
