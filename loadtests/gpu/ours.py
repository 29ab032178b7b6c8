"""The stations and the engine of one of our bundles, timed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bundle.directory import open_bundle, read_manifest
from loadtests.conversation import Conversation
from loadtests.gpu.found import Found, tell
from loadtests.gpu.sizes import Sizes
from loadtests.stations import DecoderBench, measure_vision
from loadtests.stopwatch import Measurement, Stopwatch
from runtime.settings import Provider
from serving.models.client import LocalClient
from serving.settings import EngineSettings


def settings_of(sizes: Sizes, provider: Provider) -> EngineSettings:
    """Return the settings that everything of ours runs under."""
    return EngineSettings(
        provider=provider,
        max_sequences=max(*sizes.batch_sizes, sizes.answers),
        context_tokens=sizes.context_tokens,
        vision_batch_tiles=max(sizes.vision_tiles),
        allow_ungated=True,
        verify_digests=False,
    )


def watch_of(sizes: Sizes) -> Stopwatch:
    """Return how often each work is run."""
    return Stopwatch(warmup=5, repeats=sizes.repeats, budget_s=sizes.budget_s)


def measure_decoder(folder: Path, family: str, name: str, sizes: Sizes, provider: Provider) -> None:
    """Tell the time of a prompt's prefill and of decode steps, sampled as the engine samples."""
    bundle = open_bundle(folder / family / name, verify=False, allow_ungated=True)
    bench = DecoderBench(bundle, settings_of(sizes, provider), sizes.prompt_tokens, sizes.answer_tokens, seed=0)
    for line in bench.measure(watch_of(sizes), sizes.batch_sizes):
        _tell(folder, name, line)


def measure_tiles(folder: Path, family: str, name: str, sizes: Sizes, provider: Provider) -> None:
    """Tell the time of the vision encoder, pixels on the host before and features on the host after."""
    bundle = open_bundle(folder / family / name, verify=False, allow_ungated=True)
    settings = settings_of(sizes, provider)
    for line in measure_vision(bundle, settings, watch_of(sizes), sizes.vision_tiles, sizes.image_px, seed=0):
        _tell(folder, name, line)


def measure_answers(folder: Path, family: str, name: str, sizes: Sizes, provider: Provider) -> None:
    """Tell the time to first tokens and of many answers at once, through the whole engine."""
    asyncio.run(_answers(folder, family, name, sizes, provider))


async def _answers(folder: Path, family: str, name: str, sizes: Sizes, provider: Provider) -> None:
    bundle = folder / family / name
    async with LocalClient([bundle], settings_of(sizes, provider)) as client:
        conversation = Conversation(client, read_manifest(bundle).name, sizes.image_px, seed=0)
        async for line in conversation.chat(watch_of(sizes), sizes.answer_tokens, (1, sizes.answers)):
            _tell(folder, name, line)


def _tell(folder: Path, name: str, line: Measurement) -> None:
    times = line.milliseconds
    tell(folder, Found(line.name, name, times.p50, note=f"n={times.n} p95={times.p95:.2f}"))
