"""The portable dialect's decoder through the same engine."""

import asyncio

import pytest

from bundle.directory import open_bundle
from export.exporter import export_checkpoint
from serving.engine.generative import GenerativeModel
from serving.engine.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=48)


@pytest.fixture
def portable_bundle(smolvlm_checkpoint, tmp_path):
    export_checkpoint(smolvlm_checkpoint, tmp_path / "portable", dialect="portable")
    return tmp_path / "portable"


def test_both_dialects_give_the_same_answers_in_one_batch(
    smolvlm_bundle, portable_bundle, pool, ask, answer, image_bytes
) -> None:
    requests = [ask(image_bytes(1), "one", max_tokens=16), ask("two", max_tokens=20), ask("three " * 12, max_tokens=9)]

    async def answers(directory) -> list[tuple[int, ...]]:
        model = GenerativeModel(directory, open_bundle(directory), SETTINGS, pool)
        model.start()
        found = await asyncio.gather(*(answer(model, request) for request in requests))
        model.close()
        return [each.token_ids for each in found]

    async def main() -> None:
        assert await answers(portable_bundle) == await answers(smolvlm_bundle)

    asyncio.run(main())
