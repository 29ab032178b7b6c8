"""The engine's stations, one at a time and without the threads between them: vision, prefill, decode.

They run through the engine's own runner, sampler and vision stage, so that what is timed is what serves.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bundle.errors import SettingsError
from bundle.image import ImageSpec
from bundle.manifest import DecoderDims, Manifest
from loadtests.images import draw_image
from loadtests.stopwatch import Measurement, Stopwatch
from loadtests.wording import counted
from runtime.cache_shape import cache_shape
from runtime.session import Session, bind_decoder, open_decoders
from runtime.settings import EngineSettings
from runtime.turns import milliseconds_of
from serving.engine.runner import Runner
from serving.engine.scheduler import Decode, DecodeRow, Prefill
from serving.engine.sequence import Sequence
from serving.models.pool import PreprocessPool
from serving.models.vision import VisionStage
from serving.protocol import SamplingParams


def measure_vision(
    directory: Path,
    manifest: Manifest,
    settings: EngineSettings,
    watch: Stopwatch,
    batch_sizes: tuple[int, ...],
    image_px: int,
    seed: int,
) -> Iterator[Measurement]:
    """Yield the encoder's time per batch of tiles, then what one image of `image_px` square costs before and in it."""
    pool = PreprocessPool(1)  # the stage wants one; runs of its encoder do not use it
    stage = VisionStage(directory, manifest, settings, pool)
    pool.close()
    spec = ImageSpec.model_validate_json((directory / "preprocessor.json").read_bytes())
    image = Image.open(io.BytesIO(draw_image(seed, image_px))).convert("RGB")
    tiles = spec.preprocess([image]).pixel_values
    height_px, width_px = spec.tile_size_px
    for size in batch_sizes:
        batch = [tiles[:1]] * size
        name = f"vision, {counted(size, 'tile')} of {width_px} x {height_px} px"
        yield Measurement(name, watch.time(lambda batch=batch: stage.run(batch)), size, "tiles")  # type: ignore[misc]
    told = f"a {image_px} px image ({counted(len(tiles), 'tile')})"
    yield Measurement(f"preprocess {told}", watch.time(lambda: spec.preprocess([image])))
    yield Measurement(f"vision, {told}", watch.time(lambda: stage.run([tiles])))


def open_runner(directory: Path, manifest: Manifest, dims: DecoderDims, settings: EngineSettings) -> Runner:
    """Return a bundle's token graphs over a new cache, for prompts without images."""
    embed_tokens = Session(directory, manifest.components["embed_tokens"], settings)
    decoder = bind_decoder(open_decoders(directory, manifest, settings), dims, cache_shape(dims, settings))
    return Runner(embed_tokens, decoder, image_token_id=-1)


class DecoderBench:
    """A bundle's decoder with its cache, without the scheduler between its steps.

    Args:
        directory: The bundle.
        manifest: Its manifest.
        dims: The manifest's decoder.
        settings: Slots, capacity, chunk length, threads.
        prompt_tokens: Cached before the first decode step.
        output_tokens: Decode steps before the prompt is cached anew.
        seed: Of the prompt's token ids.

    Raises:
        SettingsError: Prompt and answer do not fit the context.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        dims: DecoderDims,
        settings: EngineSettings,
        prompt_tokens: int,
        output_tokens: int,
        seed: int,
    ) -> None:
        self._shape = cache_shape(dims, settings)
        if prompt_tokens + output_tokens > self._shape.capacity_tokens:
            raise SettingsError(
                f"{prompt_tokens} prompt and {output_tokens} output tokens do not fit the context of "
                f"{self._shape.capacity_tokens} tokens: ask for fewer"
            )
        self._runner = open_runner(directory, manifest, dims, settings)
        self._chunk_tokens = settings.prefill_chunk_tokens
        self._prompt_ids = np.random.default_rng(seed).integers(0, dims.vocab_size, prompt_tokens, np.int64)
        self._output_tokens = output_tokens

    def measure(self, watch: Stopwatch, batch_sizes: tuple[int, ...]) -> Iterator[Measurement]:
        """Yield the time of a whole prompt's prefill, then of one decode step at each batch size."""
        length = len(self._prompt_ids)
        prefill = watch.time(lambda: self._prefilled(1))
        yield Measurement(f"prefill, {length} tokens", prefill, length, "tokens")
        for size in batch_sizes:
            steps = self._decode_steps(size)
            name = f"decode step, batch {size}, {length} tokens cached"
            yield Measurement(name, watch.collect(lambda steps=steps: next(steps)), size, "tokens")  # type: ignore[misc]

    def _prefilled(self, size: int) -> list[Sequence]:
        """Return `size` sequences in the first slots, each with its prompt cached and one token sampled."""
        sequences = [Sequence(str(slot), self._prompt_ids, SamplingParams(), eos_token_ids=()) for slot in range(size)]
        for slot, sequence in enumerate(sequences):
            sequence.slot = slot
            while not sequence.is_prefilled:
                end = min(sequence.num_cached + self._chunk_tokens, sequence.num_prompt_tokens)
                logits = self._runner.prefill(Prefill(sequence, sequence.num_cached, end))
                sequence.num_cached = end
            sequence.output_ids.append(sequence.sampler(logits[0]))
        return sequences

    def _decode_steps(self, size: int) -> Iterator[float]:
        """Yield the milliseconds of one decode step after another, caching the prompts anew where answers are full."""
        while True:
            sequences = self._prefilled(size)
            for _ in range(self._output_tokens - 1):
                yield milliseconds_of(lambda sequences=sequences: self._step(sequences))  # type: ignore[misc]

    def _step(self, sequences: list[Sequence]) -> None:
        """Run and sample one token of every sequence, as the engine's step does."""
        rows = tuple(DecodeRow(sequence.num_cached, sequence) for sequence in sequences)
        for sequence, logits in zip(sequences, self._runner.decode(Decode(0, rows)), strict=True):
            sequence.output_ids.append(sequence.sampler(logits))
            sequence.num_cached += 1
