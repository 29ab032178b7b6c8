"""A vision-language model ready to answer: what happens to a request before and after the engine thread."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from bundle.directory import Bundle
from bundle.errors import BundleFormatError
from bundle.generation import GENERATION, SamplingDefaults
from bundle.manifest import Manifest
from bundle.prompt import PromptBuilder
from bundle.question import QuestionReader
from bundle.text import Tokenizer
from bundle.token_bytes import TokenBytes
from quant.visual_tokens.skipping import skipped_key
from runtime.cache_shape import CacheShape, context_of
from runtime.canary import check_canary
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.fused_prefix import text_rows
from runtime.room import check_room
from runtime.segmented_prompt import Choose
from runtime.segments import SegmentChain
from serving.engine.engine import Engine
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.sampling.grammar import Grammars
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence as EngineSequence
from serving.engine.worker import Worker
from serving.engine_status import EngineStatus
from serving.models.adapters import Adapters
from serving.models.choices import ChoiceAnswer, Vocabulary, merged, sampling_of
from serving.models.contrasting import check_contrast, contrast_of
from serving.models.fusing import Fusing
from serving.models.inside import Inside, before_decoder, check_alone
from serving.models.kv import KVPolicies
from serving.models.learning import Learning
from serving.models.model import Model
from serving.models.pool import PreprocessPool
from serving.models.prepared import Prepared
from serving.models.preparing import Preparing
from serving.models.reducing import Reducing
from serving.models.sampling_limits import check_sampling
from serving.models.served_cache import served_cache
from serving.models.tokens import told_tokens
from serving.models.vision import VisionStage
from serving.protocol import (
    FinishedEvent,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    TextPart,
    TokenizeRequest,
    TokenizeResult,
)
from serving.settings import EngineSettings

_WARM_UP_TOKENS = 8
_REMEMBERED_ANSWERS = 64
"""Whose time to the first token a status tells."""


def _has_images(request: GenerateRequest | TokenizeRequest) -> bool:
    return any(not isinstance(part, TextPart) for message in request.messages for part in message.parts)


def _limited_by(manifest: Manifest, settings: EngineSettings, shape: CacheShape) -> str:
    """Return why a context is no longer, where that is neither the model nor `context_tokens`."""
    longest = context_of(manifest, settings.context_tokens)
    return "" if longest == shape.capacity_tokens else ", all that kv_memory_bytes has room for"


class GenerativeModel(Model):
    """One vision-language bundle.

    Args:
        bundle: Opened.
        settings: Slots, threads, limits.
        pool: Decodes images, fills templates, tokenizes.

    Raises:
        BundleError: A graph, the tokenizer or the template is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    does = "answering questions"

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        manifest = bundle.manifest
        shape = served_cache(manifest, settings)
        if shape is None:
            raise BundleFormatError(f"{bundle.directory} has no decoder; it cannot answer questions")
        super().__init__(manifest, settings, pool)
        check_room(manifest, shape, settings.provider)
        self._policies = KVPolicies(manifest, settings)
        self._fusing = Fusing(manifest, settings.provider)
        self._adapters = Adapters(manifest)
        self._shape = shape
        self._defaults = SamplingDefaults.read(bundle.path(GENERATION))
        self._prompts = PromptBuilder.from_bundle(bundle)
        tokenizer = self._prompts.tokenizer
        self._first_tokens_s: deque[float] = deque(maxlen=_REMEMBERED_ANSWERS)
        self._vocabulary = Vocabulary(tokenizer, TokenBytes(tokenizer), manifest.eos_token_ids, manifest.grounding)
        self._vision = VisionStage(bundle, settings, pool)
        graphs = TokenGraphs(bundle, settings)
        if settings.check_golden:
            check_canary(bundle, {**self._vision.sessions, **graphs.sessions})
            if graphs.segments:
                check_canary(bundle, {manifest.graph("decoder", "prompt"): SegmentChain(graphs.segments)})
        self._inside = Inside(bundle, graphs)
        self._inside.check_default(settings)
        self._reducing = Reducing(
            manifest,
            self._prompts.image_prompt,
            tokenizer,
            graphs.embed_text,
            before_decoder(settings.vision),
        )
        self._decoder = Decoder(graphs, self._shape)
        self._learning = Learning(
            manifest, settings.provider, graphs, self._prompts, min(shape.capacity_tokens, graphs.max_positions)
        )
        self._vocab_size, self._max_positions = graphs.vocab_size, graphs.max_positions
        self._grammars = Grammars(
            tokenizer, graphs.vocab_size, manifest.eos_token_ids, settings.max_sequences, self._prompts.answer_lead
        )
        self._limited_by = _limited_by(manifest, settings, shape)
        self._preparing = Preparing(
            pool,
            self._prompts,
            self._vision,
            QuestionReader.from_bundle(bundle),
            self._reducing,
            self._fusing,
            self._learning,
            self._grammars,
            self._adapters,
            shape,
            graphs.max_positions,
            self._limited_by,
        )
        self._engine = Engine(
            f"engine-{manifest.name}",
            Runner(self._decoder),
            Scheduler(
                shape,
                Pace(settings.chunk_tokens, settings.max_gap_ms / 1e3),
                keeps_prefixes=settings.prefix_cache,
            ),
            settings.patience,
        )

    @property
    def start_line(self) -> str:
        """The line printed at start: name, weights, cache."""
        return f"{super().start_line}, {self._shape}{self._limited_by}"

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        num_tokens = min(_WARM_UP_TOKENS, self._shape.capacity_tokens - 1)
        return {
            self._engine: lambda: self._decoder.warm_up(num_tokens),
            **self._vision.workers,
        }

    @property
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        running = self._engine.gauges
        waiting = self._admission.num_admitted - running["num_requests_running"]
        return {
            **running,
            "num_requests_waiting": max(waiting, 0.0),
            **self._vision.gauges,
            "num_preprocess_waiting": float(self._pool.num_preprocess_waiting),
        }

    @property
    def status(self) -> EngineStatus:
        """What its engine is doing, slot by slot."""
        return replace(self._engine.status, gauges=self.gauges, first_token_s=tuple(self._first_tokens_s))

    @property
    def cache_resident_bytes(self) -> int:
        """Memory that the cache takes now, as the kernel counts it.

        Raises:
            OSError: This system does not tell.
        """
        return self._decoder.states.resident_bytes

    def clear_prefixes(self) -> None:
        """Forget what was read of prompts of earlier requests."""
        self._engine.clear_prefixes()

    def close(self) -> None:
        """Stop the threads; unfinished requests fail with EngineDeadError."""
        super().close()
        self._grammars.close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise; closing the iterator frees the slot."""
        self._adapters.number(request.adapter)
        check_sampling(request, self._vocab_size, self._shape.most_rows)
        compression, vision = self._policies.wanted(request.kv), request.vision or self._settings.vision
        choose = self._inside.choice(vision) if _has_images(request) else None
        num_skipped = self._inside.num_skipped(vision) if _has_images(request) else 0
        check_alone(vision, choose, compression)
        request = replace(request, sampling=replace(request.sampling, contrast=contrast_of(request)))
        if request.sampling.contrast is not None:
            check_contrast(request, self._manifest, self._shape.num_slots, vision, compression)
        self._fusing.check(request, compression, None if choose is None else vision)
        self._learning.check(request)
        reduction = self._reducing.of(before_decoder(vision))
        sampling, num_choices = request.sampling.filled(self._defaults), request.num_choices
        arrived_s = time.monotonic()
        with ExitStack() as places:
            for _ in range(num_choices if request.sampling.contrast is None else 2 * num_choices):
                places.enter_context(self._admission.admit())
            if request.learns:
                yield await self._preparing.learned(request, arrived_s)
                return
            prepared = await self._preparing.prepare(request, reduction, compression)
            request = replace(request, messages=(), text=None)  # encoded images are not held as long as an answer
            with self._choices(request, prepared, sampling, arrived_s, choose, num_skipped) as choices:
                async with aclosing(self._events(choices, prepared, request.adapter, arrived_s)) as events:
                    async for event in events:
                        yield event

    @property
    def tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer."""
        return self._prompts.tokenizer

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a conversation, or of a text, as an answer would read them.

        Raises:
            RequestError: It would be refused.
        """
        vision = request.vision or self._settings.vision
        if _has_images(request):
            self._inside.choice(vision)
            self._inside.num_skipped(vision)
        reduction = self._reducing.of(before_decoder(vision))
        with self._admission.admit():
            prompt, visuals, _ = await self._preparing.prompted(request, reduction, None)
        if reduction is not None:
            layouts = [layout for visual in visuals for layout in visual.layouts]
            prompt = self._reducing.counted(reduction, prompt, layouts)
        return told_tokens(self.tokenizer, prompt.token_ids.tolist())

    @contextmanager
    def _choices(
        self,
        request: GenerateRequest,
        prepared: Prepared,
        sampling: SamplingParams,
        arrived_s: float,
        choose: Choose | None,
        num_skipped: int,
    ) -> Iterator[list[ChoiceAnswer]]:
        """Submit as many sequences of the prompt; cancel them when the block is left, however that happens."""
        adapter = self._adapters.number(request.adapter)
        prompt = FilledPrompt.of(prepared.prompt, [image.features for image in prepared.images], adapter)
        image_keys = [image.key for image in prepared.images]
        if num_skipped:
            prompt, image_keys = prompt.skipping(num_skipped), [skipped_key(key, num_skipped) for key in image_keys]
        end_ids = (*(() if sampling.ignores_eos else self._manifest.eos_token_ids), *sampling.stop_token_ids)
        deadline_s = math.inf if request.timeout_s is None else arrived_s + request.timeout_s
        lead = "" if prepared.structure is None else prepared.structure.lead
        choices = []
        with ExitStack() as submitted:
            for index in range(request.num_choices):
                own = self._within_positions(sampling_of(sampling, index), prepared)
                sequence = EngineSequence(
                    request.request_id,
                    prompt,
                    own,
                    end_ids,
                    image_keys,
                    self._manifest.num_length_groups,
                    None if prepared.structure is None else prepared.structure.constraint(),
                    priority=request.priority,
                    deadline_s=deadline_s,
                    segmented=self._inside.segmented(prompt, choose),
                    behind=None if prepared.prefix is None else prepared.prefix.rows,
                    heads=None if prepared.vector is None else prepared.vector.heads,
                    wanted_rows=None if prepared.to_fuse is None else text_rows(prepared.prompt),
                    compression=prepared.compression,
                    shadow=self._shadow(request, prepared, end_ids),
                )
                stream = self._engine.submit(sequence)
                submitted.callback(self._engine.cancel, stream)
                calls = bool(request.tools)
                made = partial(ChoiceAnswer, index, self._engine, stream, own, self._vocabulary, lead)
                choices.append(made(may_call=calls, asked=prepared.asked))
            yield choices

    def _shadow(self, request: GenerateRequest, prepared: Prepared, end_ids: Sequence[int]) -> EngineSequence | None:
        """Return a fresh sequence of what an answer is held against; None where it is held against nothing."""
        against = prepared.against
        if against is None:
            return None
        adapter = self._adapters.number(request.adapter)
        prompt = FilledPrompt.of(against.prompt, [image.features for image in against.images], adapter)
        keys = [image.key for image in against.images]
        num_groups = self._manifest.num_length_groups
        return EngineSequence(request.request_id, prompt, SamplingParams(), end_ids, keys, num_groups)

    def _within_positions(self, sampling: SamplingParams, prepared: Prepared) -> SamplingParams:
        """Return a sampling that ends where positions do: rows fill up later where a prompt has gaps or loses some."""
        end, most = prepared.prompt.next_position, self._max_positions - prepared.prompt.next_position
        fills_up = end <= prepared.prompt.num_tokens and prepared.compression is None
        if fills_up or (sampling.max_tokens or most + 1) <= most:
            return sampling
        return replace(sampling, max_tokens=most)

    async def _events(
        self, choices: Sequence[ChoiceAnswer], prepared: Prepared, adapter: str, arrived_s: float
    ) -> AsyncGenerator[GenerateEvent, None]:
        first_token_s = 0.0
        reason: FinishReason = "stop"
        untold = prepared.prompt.num_tokens
        async with aclosing(merged([choice.events() for choice in choices])) as pieces:
            async for piece in pieces:
                if piece.token_ids:
                    first_token_s = first_token_s or time.monotonic() - arrived_s
                if piece.reason and piece.index == 0:
                    reason = piece.reason
                yield replace(piece, prompt_tokens=untold) if untold else piece
                untold = 0
        sequences = [choice.stream.sequence for choice in choices]
        usage = prepared.usage(sequences, sum(choice.num_tokens for choice in choices))
        timings = prepared.timings(sequences, arrived_s, first_token_s)
        if first_token_s:
            self._first_tokens_s.append(first_token_s)
        fused = None
        if prepared.to_fuse is not None and (rows := sequences[0].handed_out) is not None:
            owner, fuse = sequences[0].request_id, self._fusing.fused
            fused = await self._pool.text.run(owner, fuse, prepared.to_fuse, rows, adapter)
        yield FinishedEvent(reason, usage, timings, fused)
