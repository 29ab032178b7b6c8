"""A vision-language model ready to answer: what happens to a request before and after the engine thread."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import BundleFormatError, ContextLengthError, ParameterError, SignatureError
from bundle.generation import SamplingDefaults
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, Prompt, PromptBuilder, Turn
from runtime.cache_shape import cache_shape
from runtime.canary import check_canary
from runtime.session import Session, bind_decoder, open_decoders
from runtime.settings import EngineSettings
from serving.engine.engine import Engine, Failed, Sampled, TokenStream
from serving.engine.runner import Runner
from serving.engine.scheduler import Decode, DecodeRow, Prefill
from serving.engine.sequence import Sequence as EngineSequence
from serving.engine.worker import Worker
from serving.models.admission import Admission
from serving.models.answer import Answer
from serving.models.pool import PreprocessPool
from serving.models.together import together
from serving.models.vision import EncodedImage, VisionStage, concatenated
from serving.protocol import (
    FinishedEvent,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    ImagePart,
    Message,
    ModelCard,
    SamplingParams,
    TextPart,
    Timings,
    TokenEvent,
    Usage,
)

_MAX_STOPS = 4
_WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class _Prepared:
    """A request on its way to the engine thread.

    Attributes:
        prompt: Filled from messages and image sizes.
        images: Encoded, in prompt order.
        preprocess_s: Decoding, templating, tokenizing, resizing.
        vision_s: Waiting for the vision encoder.
    """

    prompt: Prompt
    images: Sequence[EncodedImage]
    preprocess_s: float
    vision_s: float


class GenerativeModel:
    """One vision-language bundle: opened at construction, serving after `start`. Used from one event loop.

    Args:
        directory: The bundle.
        manifest: Its verified manifest.
        settings: Slots, threads, limits.
        pool: Decodes images, fills templates, tokenizes.

    Raises:
        BundleError: A graph, the tokenizer or the template is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    def __init__(self, directory: Path, manifest: Manifest, settings: EngineSettings, pool: PreprocessPool) -> None:
        if manifest.decoder is None or manifest.image_prompt is None:
            raise BundleFormatError(f"{directory} has no decoder or no image prompt; it cannot answer questions")
        self._manifest = manifest
        self._settings = settings
        self._pool = pool
        self._shape = cache_shape(manifest.decoder, settings)
        self._defaults = SamplingDefaults.read(directory)
        self._prompts = PromptBuilder.from_bundle(directory, manifest)
        self._vision = VisionStage(directory, manifest, settings, pool)
        embed_tokens = Session(directory, manifest.components["embed_tokens"], settings)
        decoders = open_decoders(directory, manifest, settings)
        if settings.check_golden:
            check_canary(
                directory,
                manifest,
                {"vision_encoder": self._vision.session, "embed_tokens": embed_tokens, **decoders},
            )
        bound = bind_decoder(decoders, manifest.decoder, self._shape)
        self.runner = Runner(embed_tokens, bound, manifest.image_prompt.image_token_id)
        self._engine = Engine(
            f"engine-{manifest.name}",
            self.runner,
            self._shape,
            settings.prefill_chunk_tokens,
            settings.stall_timeout_s,
        )
        self._admission = Admission(manifest.name, settings.max_sequences + settings.max_waiting)

    @property
    def card(self) -> ModelCard:
        """What `/v1/models` tells of it."""
        return card_of(self._manifest, self._shape.capacity_tokens)

    @property
    def start_line(self) -> str:
        """The line printed at start: name, weights, cache."""
        return f"{self._manifest.name}: {self._manifest.weight_bytes / 2**20:.0f} MiB of weights, {self._shape}"

    @property
    def workers(self) -> tuple[Worker[Any], ...]:
        """Its threads."""
        return (self._engine, self._vision.worker)

    @property
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        running = self._engine.gauges
        waiting = self._admission.num_admitted - running["num_requests_running"]
        return {**running, "num_requests_waiting": max(waiting, 0.0), **self._vision.gauges}

    def start(self) -> None:
        """Warm up every graph and start the threads; blocks for the length of a few steps."""
        self._vision.warm_up()
        self._warm_up()
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Stop the threads; unfinished requests fail with EngineDeadError."""
        for worker in self.workers:
            worker.close()

    def _warm_up(self) -> None:
        """Run prefill and the smallest and largest decode batch; what they write, later tokens overwrite."""
        ids = np.zeros(min(_WARM_UP_TOKENS, self._shape.capacity_tokens - 1), np.int64)
        sequence = EngineSequence("warm-up", ids, SamplingParams(), ())
        sequence.slot = 0
        self.runner.prefill(Prefill(sequence, 0, len(ids)))
        for size in {1, self._shape.num_slots}:
            self.runner.decode(Decode(0, (DecodeRow(0, None),) * size))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise; closing the iterator frees the slot."""
        check_sampling(request.sampling)
        sampling = request.sampling.filled(self._defaults)
        arrived_s = time.monotonic()
        with self._admission.admit():
            prepared = await self._prepare(request.messages)
            async with (
                self._stream(request.request_id, prepared, sampling) as stream,
                aclosing(self._events(stream, prepared, sampling, arrived_s)) as events,
            ):
                async for event in events:
                    yield event

    async def _prepare(self, messages: Sequence[Message]) -> _Prepared:
        """Return prompt and features; the prompt's length is judged before any image is encoded."""
        started_s = time.monotonic()
        num_characters = sum(len(p.text) for message in messages for p in message.parts if isinstance(p, TextPart))
        self._prompts.tokenizer.check_characters(num_characters, self._shape.capacity_tokens)
        parts = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
        decoded = await together(self._vision.decode(part.data) for part in parts)
        layouts = [image.layout for image in decoded]
        prompt = await self._pool.run(self._prompts.build, _turns(messages), layouts)
        self._check_length(prompt)
        prompted_s = time.monotonic()
        images = await together(self._vision.encode(image) for image in decoded)
        resize_s = max((image.preprocess_s for image in images), default=0.0)
        vision_s = max(time.monotonic() - prompted_s - resize_s, 0.0)
        return _Prepared(prompt, images, prompted_s - started_s + resize_s, vision_s)

    def _check_length(self, prompt: Prompt) -> None:
        num_tokens, limit = len(prompt.token_ids), self._shape.capacity_tokens
        if num_tokens + 1 > limit:
            raise ContextLengthError(
                f"the prompt takes {num_tokens} tokens ({prompt.num_image_tokens} of them for {prompt.num_images} "
                f"images); the context holds {limit}, one of them for the answer. Send less text or fewer images.",
                "messages",
            )

    @asynccontextmanager
    async def _stream(
        self, request_id: str, prepared: _Prepared, sampling: SamplingParams
    ) -> AsyncIterator[TokenStream]:
        """Submit the sequence; cancel it when the block is left, however that happens."""
        image_rows = concatenated(prepared.images)
        num_rows = 0 if image_rows is None else len(image_rows)
        if num_rows != prepared.prompt.num_image_tokens:
            raise SignatureError(
                f"{self._manifest.name}: the vision encoder gave {num_rows} rows of features, the prompt has "
                f"{prepared.prompt.num_image_tokens} image tokens. Export the checkpoint again."
            )
        sequence = EngineSequence(
            request_id,
            np.array(prepared.prompt.token_ids, np.int64),
            sampling,
            self._manifest.eos_token_ids,
            image_rows,
        )
        stream = self._engine.submit(sequence)
        try:
            yield stream
        finally:
            self._engine.cancel(stream)

    async def _events(
        self, stream: TokenStream, prepared: _Prepared, sampling: SamplingParams, arrived_s: float
    ) -> AsyncGenerator[GenerateEvent, None]:
        answer = Answer(self._prompts.tokenizer, self._manifest.eos_token_ids, sampling.stop)
        first_token_s = 0.0
        reason: FinishReason = "stop"
        while not answer.is_stopped:
            event = await stream.get()
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Sampled):
                reason = event.reason or reason
                break
            first_token_s = first_token_s or time.monotonic() - arrived_s
            yield TokenEvent(answer.push(event.token_id), (event.token_id,))
        if rest := answer.finish():
            yield TokenEvent(rest, ())
        prompt, sequence = prepared.prompt, stream.sequence
        usage = Usage(len(prompt.token_ids), answer.num_tokens, prompt.num_image_tokens)
        queue_s = sequence.started_s - sequence.submitted_s
        total_s = time.monotonic() - arrived_s
        timings = Timings(queue_s, prepared.preprocess_s, prepared.vision_s, first_token_s, total_s)
        yield FinishedEvent("stop" if answer.is_stopped else reason, usage, timings)


def card_of(manifest: Manifest, context_tokens: int | None) -> ModelCard:
    """Return the public description of a bundle."""
    return ModelCard(
        manifest.name,
        manifest.task,
        manifest.model_type,
        {name: component.scheme for name, component in manifest.components.items()},
        manifest.weight_bytes,
        context_tokens,
        manifest.gates,
        manifest.is_gated,
    )


def check_sampling(sampling: SamplingParams) -> None:
    """Refuse sampling that means nothing.

    Raises:
        ParameterError: A value is out of range; the message gives the range.
    """
    limits: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_tokens": (lambda count: count >= 1, "at least 1"),
        "temperature": (lambda heat: 0 <= heat < float("inf"), "0 or more, and finite"),
        "top_p": (lambda mass: 0 < mass <= 1, "above 0 and at most 1"),
        "top_k": (lambda count: count >= 0, "0 (all) or more"),
        "stop": (lambda texts: len(texts) <= _MAX_STOPS and all(texts), f"at most {_MAX_STOPS} texts, none empty"),
    }
    for name, (is_good, limit) in limits.items():
        value = getattr(sampling, name)
        if value is not None and not is_good(value):
            raise ParameterError(f"{name} is {value!r}; it must be {limit}", name)


def _turns(messages: Sequence[Message]) -> list[Turn]:
    return [
        Turn(
            message.role,
            tuple(part.text if isinstance(part, TextPart) else Placeholder.IMAGE for part in message.parts),
        )
        for message in messages
    ]
