"""Models that come and go while others are served, and the encoder that several have in common."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.directory import read_manifest, seal
from bundle.errors import BundleError, BundleFileError, EngineDeadError, ModelNotFoundError
from serving.models.client import LocalClient
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1, context_tokens=512)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.fixture(scope="module")
def other(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files under another name."""
    folder = Path(shutil.copytree(smolvlm_bundle, tmp_path_factory.mktemp("other") / "other"))
    seal(folder, read_manifest(folder).model_copy(update={"name": "other"}))
    return folder


def test_a_model_comes_beside_another_and_goes_and_its_memory_with_it(
    smolvlm_bundle: Path, clip_bundle: Path, ask: Any, answer: Any, image_bytes: Any
) -> None:
    async def main() -> None:
        async with LocalClient([clip_bundle], SETTINGS) as client:
            asked = ask(image_bytes(1), "hi", max_tokens=3)
            with pytest.raises(ModelNotFoundError):
                await answer(client, asked)
            card = await client.load(smolvlm_bundle)
            assert [each.name for each in await client.models()] == ["tiny-clip", card.name]
            first = await answer(client, asked)
            gone = weakref.ref(client._models[card.name])
            session = weakref.ref(client._models[card.name]._vision.session)
            await client.unload(card.name, 5)
            assert gone() is None
            assert session() is None
            with pytest.raises(ModelNotFoundError):
                await answer(client, asked)
            with pytest.raises(ModelNotFoundError):
                await client.unload(card.name, 5)
            assert list((await client.health()).model_gauges) == ["tiny-clip"]
            await client.load(smolvlm_bundle)
            assert (await answer(client, asked)).token_ids == first.token_ids

    run(main)


def test_requests_under_way_end_before_a_model_goes_and_new_ones_are_refused(
    smolvlm_bundle: Path, ask: Any, answer: Any
) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            running = asyncio.create_task(answer(client, ask("hi", max_tokens=100, ignores_eos=True)))
            while not client._models["tiny-smolvlm"].num_admitted:
                await asyncio.sleep(0.001)
            unloading = asyncio.create_task(client.unload("tiny-smolvlm", 60))
            await asyncio.sleep(0)
            assert await client.models() == []
            with pytest.raises(ModelNotFoundError):
                await answer(client, ask("hi"))
            assert len((await running).token_ids) == 100
            await unloading

    run(main)


def test_what_does_not_end_in_time_is_ended_with_an_error(smolvlm_bundle: Path, ask: Any) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            events = client.generate(ask("hi", max_tokens=400, ignores_eos=True))
            await anext(events)
            await client.unload("tiny-smolvlm", 0)
            with pytest.raises(EngineDeadError):
                _ = [event async for event in events]

    run(main)


def test_a_load_that_fails_leaves_what_is_served_and_nothing_else(
    smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Path(shutil.copytree(clip_bundle, tmp_path / "broken"))
    (broken / "tokenizer.json").write_bytes(b"{}")

    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            with pytest.raises(BundleFileError, match=r"tokenizer\.json"):
                await client.load(broken)
            with pytest.raises(BundleError, match="is served already"):
                await client.load(smolvlm_bundle)
            assert [card.name for card in await client.models()] == ["tiny-smolvlm"]
            assert (await client.health()).is_ready

    run(main)


def test_nothing_is_loaded_by_a_client_that_is_not_serving(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    async def main() -> None:
        client = LocalClient([smolvlm_bundle], SETTINGS)
        with pytest.raises(EngineDeadError):
            await client.load(clip_bundle)
        await client.close()
        with pytest.raises(EngineDeadError):
            await client.load(clip_bundle)

    run(main)


def test_two_models_with_one_encoder_hold_it_once(
    smolvlm_bundle: Path, other: Path, ask: Any, answer: Any, image_bytes: Any
) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, other], SETTINGS) as client:
            towers = [model._vision.session for model in client._models.values()]
            assert towers[0] is towers[1]
            one, two = (ask(image_bytes(seed), "hi", max_tokens=5) for seed in (1, 2))
            both = await asyncio.gather(
                answer(client, one), answer(client, ask(image_bytes(2), "hi", model="other", max_tokens=5))
            )
            alone = [(await answer(client, each)).token_ids for each in (one, two)]
            assert [each.token_ids for each in both] == alone
            held = weakref.ref(towers[0])
            del towers
            await client.unload("tiny-smolvlm", 5)
            assert held() is not None  # the other model has it
            assert (await answer(client, ask(image_bytes(3), "hi", model="other", max_tokens=2))).token_ids
            await client.unload("other", 5)
            gc.collect()
            assert held() is None

    run(main)


def test_encoders_that_differ_are_not_shared(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS) as client:
            first, second = (model._vision.session for model in client._models.values())
            assert first is not second

    run(main)
