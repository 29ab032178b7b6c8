"""What a running engine tells of its slots."""

import asyncio
import json
from dataclasses import asdict

from serving.api.metric_table import ENGINE_METRICS
from serving.engine_status import MOST_WAITING
from serving.models.client import LocalClient
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=2, max_waiting=200, intra_threads=1)


def test_slots_tell_who_runs_who_waits_and_what_is_kept(smolvlm_bundle, clip_bundle, ask, answer, image_bytes) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle, clip_bundle], SETTINGS) as client:
            idle = (await client.status())["tiny-smolvlm"]["0"]
            assert {slot.state for slot in idle.slots} == {"free"}
            assert (idle.slot_rows, idle.first_token_s) == (512, ())

            request = ask(image_bytes(1), "hi", max_tokens=200, temperature=1.0, seed=1)
            running = [asyncio.create_task(answer(client, request)) for _ in range(MOST_WAITING + 20)]
            while (told := (await client.status())["tiny-smolvlm"]["0"]).gauges["num_requests_running"] < 2:
                await asyncio.sleep(0)
            busy = [slot for slot in told.slots if slot.state in ("prefill", "compress", "decode")]
            assert {slot.request_id for slot in busy} == {"r"}
            assert all(0 <= slot.rows <= slot.prompt_tokens + slot.output_tokens for slot in busy)
            assert all(slot.image_tokens > 0 for slot in busy)
            while len((told := (await client.status())["tiny-smolvlm"]["0"]).waiting) < MOST_WAITING:
                await asyncio.sleep(0)
            assert len(told.waiting) == MOST_WAITING
            assert told.memory_bytes > 1 << 20
            json.dumps(asdict(told))
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

            done = await answer(client, ask("hello there", max_tokens=5))
            told = (await client.status())["tiny-smolvlm"]["0"]
            assert "kept" in {slot.state for slot in told.slots}
            assert told.first_token_s[-1] == done.finished.timings.first_token_s
            assert told.gauges["tokens_sampled"] >= 5
            assert told.gauges["tokens_read"] >= done.finished.usage.prompt_tokens
            assert (await client.status())["tiny-clip"]["0"].slots == ()
            gauges = {name for engines in (await client.health()).model_gauges.values() for name in engines}
            assert gauges == {spec.name for spec in ENGINE_METRICS} - {"num_replicas"}

    asyncio.run(asyncio.wait_for(main(), 120))


def test_stations_of_a_request_lie_within_its_time(smolvlm_bundle, ask, answer, image_bytes) -> None:
    async def main() -> None:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            took = (await answer(client, ask(image_bytes(1), "hi", max_tokens=20))).finished.timings
            stations = (took.preprocess_s, took.vision_s, took.queue_s, took.prefill_s, took.decode_s)
            assert all(each > 0 for each in stations)
            assert sum(stations) <= took.total_s
            assert took.preprocess_s + took.vision_s + took.queue_s + took.prefill_s <= took.first_token_s
            one = (await answer(client, ask("hi", max_tokens=1))).finished.timings
            assert one.decode_s == 0

    asyncio.run(asyncio.wait_for(main(), 60))
