"""The engine's stations, one at a time and without the threads between them: vision, prefill, decode.

They run through the engine's own runner, sampler and vision stage, so that what is timed is what serves.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import PocketVLMError, SettingsError
from bundle.image import PREPROCESSOR, ImageSpec
from loadtests.images import draw_image
from loadtests.stopwatch import Measurement, Stopwatch
from loadtests.wording import counted
from runtime.cache_shape import cache_shape, context_of
from runtime.chunks import chunks
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.step_logits import StepLogits
from runtime.turns import milliseconds_of
from serving.engine.runner import Runner
from serving.engine.sampling.likeliest import choices
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduler import Batch, Row
from serving.engine.sequence import Sequence
from serving.models.pool import PreprocessPool
from serving.models.vision import VisionStage
from serving.protocol import SamplingParams
from serving.settings import EngineSettings


def open_vision(bundle: Bundle, settings: EngineSettings) -> VisionStage:
    """Return a bundle's vision stage, whose encoder is to be run directly."""
    pool = PreprocessPool(settings)  # the stage wants one; runs of its encoder do not use it
    try:
        return VisionStage(bundle, settings, pool)
    finally:
        pool.close()


def measure_vision(
    bundle: Bundle,
    settings: EngineSettings,
    watch: Stopwatch,
    batch_sizes: tuple[int, ...],
    image_px: int,
    seed: int,
) -> Iterator[Measurement]:
    """Yield the encoder's time per batch of tiles, then what one image of `image_px` square costs before and in it."""
    stage = open_vision(bundle, settings)
    spec = ImageSpec.read(bundle.path(PREPROCESSOR))
    image = Image.open(io.BytesIO(draw_image(seed, image_px))).convert("RGB")
    groups = list(spec.preprocess([image]).groups)
    num_tiles = sum(map(len, groups))
    height_px, width_px = spec.tile_size_px
    for size in batch_sizes:
        batch = [groups[0][:1]] * size
        name = f"vision, {counted(size, 'tile')} of {width_px} x {height_px} px"
        yield Measurement(name, watch.time(lambda batch=batch: stage.run(batch)), size, "tiles")  # type: ignore[misc]
    told = f"a {image_px} px image ({counted(num_tiles, 'tile')})"
    yield Measurement(f"preprocess {told}", watch.time(lambda: spec.preprocess([image])))
    yield Measurement(f"vision, {told}", watch.time(lambda: stage.run(groups)))


class TokenBench:
    """A bundle's token graphs under the engine's own runner, without the scheduler between its steps.

    Args:
        bundle: Opened; it has a decoder.
        num_slots: Sequences of the largest batch.
        capacity_tokens: Rows of a slot.
        settings: Chunk length, threads.
    """

    def __init__(self, bundle: Bundle, num_slots: int, capacity_tokens: int, settings: EngineSettings) -> None:
        shape = cache_shape(bundle.manifest, num_slots, capacity_tokens)
        self._runner = Runner(Decoder(TokenGraphs(bundle, settings), shape))
        self._chunk_tokens = settings.chunk_tokens

    def sequence(self, ids: npt.NDArray[np.int64], slot: int) -> Sequence:
        """Return a sequence with nothing in the cache yet."""
        sequence = Sequence(
            str(slot), FilledPrompt.of_ids(ids), SamplingParams(), (), num_length_groups=self._runner.num_length_groups
        )
        sequence.slot = slot
        return sequence

    def prefill(self, sequence: Sequence) -> StepLogits:
        """Run a whole prompt in chunks and return the logits [1, V] of its last token."""
        for start, end in chunks(sequence.num_prompt_tokens, self._chunk_tokens):
            logits = self._runner.run(Batch("prompt", (Row(sequence, start, end),)))
            sequence.advance(end - start)
        return logits

    def step(self, sequences: list[Sequence]) -> StepLogits:
        """Run the newest token of every sequence and return the logits [n, V]."""
        rows = tuple(Row(sequence, len(sequence.ids) - 1, len(sequence.ids)) for sequence in sequences)
        return self._runner.run(Batch("step", rows))


class DecoderBench:
    """A bundle's decoder: a prompt, and steps behind it.

    Args:
        bundle: Opened; it has a decoder.
        settings: Slots, capacity, chunk length, threads.
        prompt_tokens: Cached before the first decode step.
        output_tokens: Decode steps before the prompt is cached anew.
        seed: Of the prompt's token ids.

    Raises:
        SettingsError: Prompt and answer do not fit the context.
    """

    def __init__(
        self, bundle: Bundle, settings: EngineSettings, prompt_tokens: int, output_tokens: int, seed: int
    ) -> None:
        capacity_tokens = context_of(bundle.manifest, settings.context_tokens) or 0
        if prompt_tokens + output_tokens > capacity_tokens:
            raise SettingsError(
                f"{prompt_tokens} prompt and {output_tokens} output tokens do not fit the context of "
                f"{capacity_tokens} tokens: ask for fewer"
            )
        self._tokens = TokenBench(bundle, settings.max_sequences, capacity_tokens, settings)
        vocab_size = bundle.manifest.decoder.vocab_size if bundle.manifest.decoder else 1
        self._prompt_ids = np.random.default_rng(seed).integers(0, vocab_size, prompt_tokens, np.int64)
        self._output_tokens = output_tokens
        self._sampler = Sampler()

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
        sequences = [self._tokens.sequence(self._prompt_ids, slot) for slot in range(size)]
        for sequence in sequences:
            self._sample([sequence], self._tokens.prefill(sequence))
        return sequences

    def _decode_steps(self, size: int) -> Iterator[float]:
        """Yield the milliseconds of one decode step after another, caching the prompts anew where answers are full."""
        while True:
            sequences = self._prefilled(size)
            for _ in range(self._output_tokens - 1):
                yield milliseconds_of(lambda sequences=sequences: self._step(sequences))  # type: ignore[misc]

    def _step(self, sequences: list[Sequence]) -> None:
        """Run and sample one token of every sequence, as the engine's step does."""
        logits = self._tokens.step(sequences)
        for sequence in sequences:
            sequence.advance(1)
        self._sample(sequences, logits)

    def _sample(self, sequences: list[Sequence], logits: StepLogits) -> None:
        """Append a token to every sequence.

        Raises:
            PocketVLMError: One has none.
        """
        chosen = choices(self._sampler, logits, [sequence.sampling_state for sequence in sequences])
        for sequence, choice in zip(sequences, chosen, strict=True):
            if isinstance(choice, PocketVLMError):
                raise choice
            sequence.append(choice.token_id)
