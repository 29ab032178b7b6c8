import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import (
    BundleError,
    BundleFileError,
    BundleFormatError,
    EngineDeadError,
    ModelNotFoundError,
    StartingError,
    TaskError,
)
from runtime.decoder import Decoder
from serving.models.client import LocalClient
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def worker_threads() -> list[str]:
    names = ("engine-", "vision-", "text-")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def test_both_kinds_of_bundles_are_served_side_by_side(smolvlm_bundle, clip_bundle, ask, answer, image_bytes) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS) as client:
            cards = await client.models()
            assert [(card.name, card.task) for card in cards] == [
                ("tiny-smolvlm", "image-text-to-text"),
                ("tiny-clip", "dual-encoder"),
            ]
            assert cards[0].context_tokens == 512
            assert cards[0].schemes == {"vision_encoder": "fp32", "embed_tokens": "fp32", "decoder": "fp32"}
            assert (await answer(client, ask(image_bytes(1), "hi", max_tokens=3))).finished.usage.completion_tokens == 3
            embedded = await client.embed(EmbedRequest("r", "tiny-clip", (TextPart("a"), ImagePart(image_bytes(1)))))
            assert embedded.embeddings.shape[0] == 2
            scored = await client.classify(
                ClassifyRequest("r", "tiny-clip", (ImagePart(image_bytes(1)),), ("cat", "dog"))
            )
            np.testing.assert_allclose(scored.scores.sum(), 1, rtol=1e-6)

    run(main)
    assert worker_threads() == []


def test_an_answer_under_way_holds_nothing_of_its_request(smolvlm_bundle, ask, image_bytes) -> None:
    """A request holds its images' bytes, up to the body's limit; an answer may take minutes."""

    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            request = ask(image_bytes(1), "hi", max_tokens=50)
            held = weakref.ref(request)
            events = client.generate(request)
            del request
            await anext(events)
            gc.collect()
            assert held() is None
            await events.aclose()

    run(main)


def test_a_model_that_is_not_served_or_does_another_task_is_named(smolvlm_bundle, clip_bundle, ask, answer) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS) as client:
            with pytest.raises(ModelNotFoundError, match="'gpt' is served; there are tiny-smolvlm, tiny-clip"):
                await answer(client, ask("hi", model="gpt"))
            with pytest.raises(TaskError, match="tiny-clip does dual-encoder"):
                await answer(client, ask("hi", model="tiny-clip"))
            with pytest.raises(TaskError, match="not made for embedding"):
                await client.embed(EmbedRequest("r", "tiny-smolvlm", (TextPart("a"),)))

    run(main)


def test_health_is_red_before_start_green_while_serving_and_red_after_close(smolvlm_bundle, ask, answer) -> None:
    async def main() -> None:
        client = LocalClient([smolvlm_bundle], SETTINGS)
        before = await client.health()
        assert (before.is_ready, before.is_alive, before.reason) == (False, True, "models are loading")
        assert before.is_starting
        with pytest.raises(StartingError, match="loading"):
            await answer(client, ask("hi"))
        await client.start()
        health = await client.health()
        assert (health.is_ready, health.is_alive, health.reason) == (True, True, "")
        # Memory for half of the two contexts: 3 layers, keys and values, 2 heads of 8 numbers.
        assert health.model_gauges["tiny-smolvlm"]["kv_cache_bytes"] == 512 * 3 * 2 * 2 * 8 * 4
        await client.close()
        assert not (await client.health()).is_ready
        assert not (await client.health()).is_starting

    run(main)


def test_a_dead_worker_turns_health_red_and_fails_requests_at_once(
    smolvlm_bundle, clip_bundle, ask, answer, monkeypatch
) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS) as client:

            def die(*work: object) -> None:
                raise SystemExit("killed")

            monkeypatch.setattr(Decoder, "step_batch", die)
            with pytest.raises(EngineDeadError, match="engine-tiny-smolvlm died"):
                await answer(client, ask("hi"))
            with pytest.raises(EngineDeadError, match="engine-tiny-smolvlm died"):
                await answer(client, ask("hi"))
            health = await client.health()
            assert (health.is_ready, health.is_alive) == (False, False)
            assert "engine-tiny-smolvlm died" in health.reason
            assert len((await client.embed(EmbedRequest("r", "tiny-clip", (TextPart("a"),)))).embeddings) == 1

    run(main)


def test_a_refused_bundle_leaves_nothing_running(smolvlm_bundle, clip_bundle, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(smolvlm_bundle, tmp_path / "altered"))
    weights = bytearray((altered / "decoder.onnx.data").read_bytes())
    weights[100] ^= 1
    (altered / "decoder.onnx.data").write_bytes(weights)
    missing = Path(shutil.copytree(smolvlm_bundle, tmp_path / "missing"))
    (missing / "tokenizer.json").unlink()

    async def main() -> None:
        for bad, kind, message in (
            (altered, BundleFileError, r"decoder\.onnx\.data was altered"),
            (missing, BundleFileError, r"tokenizer\.json is missing"),
            (tmp_path, BundleFormatError, "is not a bundle"),
            (clip_bundle, BundleError, "a model named tiny-clip is served already"),
        ):
            client = LocalClient([clip_bundle, bad], SETTINGS)
            with pytest.raises(kind, match=message):
                await client.start()
            assert worker_threads() == []
            assert not (await client.health()).is_ready

    run(main)


def test_two_bundles_of_one_name_are_refused_before_any_is_loaded(clip_bundle, monkeypatch) -> None:
    monkeypatch.setattr("serving.models.client.load_model", lambda *given: pytest.fail(f"loaded {given[0]}"))
    with pytest.raises(BundleError, match="a model named tiny-clip is served already"):
        asyncio.run(LocalClient([clip_bundle, clip_bundle], SETTINGS).start())


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.02])
def test_requests_under_way_when_the_client_closes_fail_and_do_not_hang(
    smolvlm_bundle, ask, answer, image_bytes, delay_s
) -> None:
    async def main() -> None:
        client = LocalClient([smolvlm_bundle], SETTINGS)
        await client.start()
        tasks = [asyncio.create_task(answer(client, ask(image_bytes(i), f"number {i}"))) for i in range(6)]
        await asyncio.sleep(delay_s)
        await client.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert failures
        assert all(isinstance(failure, EngineDeadError) for failure in failures), failures

    run(main)
