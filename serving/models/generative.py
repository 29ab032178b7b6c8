"""A vision-language model ready to answer: what happens to a request before and after the engine thread."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ContextLengthError, ImageError
from bundle.generation import GENERATION, SamplingDefaults
from bundle.prompt import Prompt, PromptBuilder
from bundle.text import Tokenizer
from bundle.token_bytes import TokenBytes
from runtime.cache_shape import context_of
from runtime.canary import check_canary
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.fused_prefix import FusedPrefix, text_rows
from runtime.room import check_room
from runtime.segmented_prompt import Choose
from runtime.segments import SegmentChain
from runtime.task_vector import TaskVector
from serving.engine.engine import Engine
from serving.engine.pace import Pace
from serving.engine.runner import Runner
from serving.engine.sampling.grammar import Grammars
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence as EngineSequence
from serving.engine.worker import Worker
from serving.engine_status import EngineStatus
from serving.models.choices import ChoiceAnswer, Vocabulary, merged, sampling_of
from serving.models.contrasting import check_contrast, contrast_of, without_images
from serving.models.cut_frames import FrameRoom
from serving.models.fusing import Fusing, Messages
from serving.models.inside import Inside, before_decoder, check_alone
from serving.models.kv import KVPolicies, compression_of
from serving.models.learning import Learning
from serving.models.model import Model
from serving.models.pool import PreprocessPool
from serving.models.prepared import Against, Prepared
from serving.models.reducing import ImageReduction, Reducing, Shown
from serving.models.sampling_limits import check_sampling
from serving.models.served_cache import served_cache
from serving.models.structures import compiled_structure
from serving.models.together import together
from serving.models.tokens import told_tokens
from serving.models.vision import EncodedImage, VisionStage
from serving.models.visual import Visual, all_filled, turns_of
from serving.protocol import (
    VCD,
    FinishedEvent,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    Timings,
    TokenizeRequest,
    TokenizeResult,
    Usage,
    VideoPart,
)
from serving.settings import EngineSettings

_WARM_UP_TOKENS = 8
_REMEMBERED_ANSWERS = 64
"""Whose time to the first token a status tells."""


def _has_images(request: GenerateRequest | TokenizeRequest) -> bool:
    return any(not isinstance(part, TextPart) for message in request.messages for part in message.parts)


@dataclass(frozen=True)
class _Place:
    """Where an image or a video stands in a request.

    Attributes:
        number: Counted from 1.
        num_parts: Images and videos.
        num_images: Of the whole prompt, those of a fused prefix among them.
        wants_pixels: It is decoded, whatever is kept of it.
    """

    number: int
    num_parts: int
    num_images: int
    wants_pixels: bool = False


def _shown(message: Message) -> list[ImagePart | VideoPart]:
    return [part for part in message.parts if not isinstance(part, TextPart)]


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
        check_sampling(request, self._vocab_size, self._shape.most_rows)
        compression, vision = self._policies.wanted(request.kv), request.vision or self._settings.vision
        choose = self._inside.choice(vision) if _has_images(request) else None
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
                yield await self._learned(request, arrived_s)
                return
            prepared = await self._prepare(request, reduction, compression)
            request = replace(request, messages=(), text=None)  # encoded images are not held as long as an answer
            with self._choices(request, prepared, sampling, arrived_s, choose) as choices:
                async with aclosing(self._events(choices, prepared, arrived_s)) as events:
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
        reduction = self._reducing.of(before_decoder(vision))
        with self._admission.admit():
            prompt, visuals, _ = await self._prompted(request, reduction, None)
        if reduction is not None:
            layouts = [layout for visual in visuals for layout in visual.layouts]
            prompt = self._reducing.counted(reduction, prompt, layouts)
        return told_tokens(self.tokenizer, prompt.token_ids.tolist())

    async def _prepare(
        self, request: GenerateRequest, reduction: ImageReduction | None, kv: KVCompression | None
    ) -> Prepared:
        """Return prompt and features; structure and prompt are judged before any image is encoded."""
        started_s = time.monotonic()
        owner = request.request_id
        structure = await compiled_structure(
            self._pool.grammars, owner, self._grammars, request.sampling.structure, request.num_choices
        )
        prefix, vector = None, None
        if request.behind is not None:
            read = await self._pool.text.run(owner, self._fusing.read, request.behind)
            prefix, vector = (None, read) if isinstance(read, TaskVector) else (read, None)
        prompt, visuals, num_dropped = await self._prompted(request, reduction, prefix)
        to_fuse = None
        if request.fuses:
            layouts = tuple(layout for visual in visuals for layout in visual.layouts)
            to_fuse = Messages(tuple(turns_of(request.messages, visuals)), layouts, prompt.token_ids)
        num_behind = 0 if prefix is None else prefix.rows.num_rows
        self._check_length(prompt, num_dropped, num_behind, "messages" if request.text is None else "prompt")
        compression = compression_of(kv, prompt.num_tokens - num_dropped, is_default=request.kv is None)
        prompted_s = time.monotonic()
        encoded = await together(self._vision.encode(owner, each) for visual in visuals for each in visual.pictures)
        images = await self._filled(owner, visuals, encoded)
        kept_rows = sum(image.num_rows for image in images if image.is_kept)
        num_tokens, num_cached = prompt.num_image_tokens, self._reducing.num_places(reduction, kept_rows)
        if reduction is not None and images:
            shown = Shown(prompt, request.messages, visuals, images)
            prompt, images = await self._pool.images.run(owner, self._reducing.apply, reduction, shown)
        against = await self._against(request, prompt, visuals)
        resize_s = max((image.preprocess_s for image in images), default=0.0)
        vision_s = max(time.monotonic() - prompted_s - resize_s, 0.0)
        preprocess_s = prompted_s - started_s + resize_s
        return Prepared(
            prompt,
            images,
            prefix,
            vector,
            to_fuse,
            structure,
            compression,
            against,
            num_tokens,
            num_cached,
            preprocess_s,
            vision_s,
        )

    async def _learned(self, request: GenerateRequest, arrived_s: float) -> FinishedEvent:
        """Return the end of a request whose messages are demonstrations, with their task vector."""
        owner = request.request_id
        shown = [_shown(message) for message in request.messages]
        parts = [(part, len(own)) for own in shown for part in own]  # seen as in a question of its own
        visuals = await together(
            self._visual(owner, part, None, _Place(at, len(parts), num_images))
            for at, (part, num_images) in enumerate(parts, 1)
        )
        encoded = await together(self._vision.encode(owner, each) for visual in visuals for each in visual.pictures)
        images = await self._filled(owner, visuals, encoded)
        layouts = [layout for visual in visuals for layout in visual.layouts]
        features = [image.features for image in images]
        demonstrations = await self._pool.text.run(
            owner, self._learning.demonstrations, turns_of(request.messages, visuals), layouts, features
        )
        vector, _ = await self._learning.find(demonstrations)
        usage = Usage(
            sum(each.shown.num_tokens for each in demonstrations),
            0,
            sum(each.alone.prompt.num_image_tokens for each in demonstrations),
        )
        timings = Timings(total_s=time.monotonic() - arrived_s)
        return FinishedEvent("stop", usage, timings, vector.to_bytes(), vector.num_heads)

    async def _against(self, request: GenerateRequest, prompt: Prompt, visuals: Sequence[Visual]) -> Against | None:
        """Return what an answer is held against: its prompt with images under noise, or one that shows nothing."""
        how, owner = request.sampling.contrast, request.request_id
        if how is None:
            return None
        if isinstance(how, VCD):
            spoilt = [visual.under_noise(how.noise_step) for visual in visuals]
            encoded = await together(self._vision.encode(owner, each) for visual in spoilt for each in visual.pictures)
            against = Against(prompt, await self._filled(owner, spoilt, encoded))
        else:
            bare = replace(request, messages=without_images(request.messages))
            against = Against((await self._prompted(bare, None, None))[0], ())
        num_tokens, most = prompt.num_tokens + against.prompt.num_tokens, self._shape.most_rows
        if num_tokens + 2 > most:
            raise ContextLengthError(
                f"contrast: the two prompts take {num_tokens} tokens, and each answer one more; the cache holds {most} "
                "rows. Send less, leave contrast out, or serve with more --kv-memory.",
                "contrast",
            )
        return against

    async def _prompted(
        self, request: GenerateRequest | TokenizeRequest, reduction: ImageReduction | None, prefix: FusedPrefix | None
    ) -> tuple[Prompt, Sequence[Visual], int]:
        """Return the prompt of a request, its images and videos, decoded, and how many image tokens will be dropped."""
        owner, messages, most = request.request_id, request.messages, self._shape.capacity_tokens
        if request.text is not None:
            affixed = not isinstance(request, TokenizeRequest) or request.adds_special_tokens
            of_text = partial(self._prompts.of_text, max_tokens=most, adds_special_tokens=affixed)
            return await self._pool.text.run(owner, of_text, request.text), (), 0
        num_characters = sum(len(p.text) for message in messages for p in message.parts if isinstance(p, TextPart))
        self._prompts.tokenizer.check_characters(num_characters, most)
        parts = [part for message in messages for part in message.parts if not isinstance(part, TextPart)]
        num_images = sum(isinstance(part, ImagePart) for part in parts)
        num_images += 0 if prefix is None else len(prefix.layouts)
        wants_pixels = isinstance(request, GenerateRequest) and isinstance(request.sampling.contrast, VCD)
        visuals = await together(
            self._visual(owner, part, reduction, _Place(at, len(parts), num_images, wants_pixels))
            for at, part in enumerate(parts, 1)
        )
        layouts = [layout for visual in visuals for layout in visual.layouts]
        num_dropped = self._reducing.num_dropped(reduction, layouts)
        build = partial(
            self._prompts.build,
            tools=request.tools,
            max_tokens=most,
            num_dropped=num_dropped + (0 if prefix is None else prefix.num_dropped_tokens),
            add_generation_prompt=not isinstance(request, TokenizeRequest) or request.opens_answer,
        )
        turns = turns_of(messages, visuals)
        if isinstance(request, GenerateRequest) and request.fuses:
            prompt = await self._pool.text.run(owner, self._fusing.beginning, build, turns, layouts)
        else:
            prompt = await self._pool.text.run(owner, self._fusing.prompt, build, turns, layouts, prefix)
        return prompt, visuals, num_dropped

    async def _filled(
        self, owner: str, visuals: Sequence[Visual], encoded: Sequence[EncodedImage]
    ) -> Sequence[EncodedImage]:
        """Return what fills the prompt; means and rows of a video's features take milliseconds, and a thread."""
        if all(visual.plan is None for visual in visuals):
            return all_filled(visuals, encoded)
        return await self._pool.images.run(owner, all_filled, visuals, encoded)

    async def _visual(
        self, owner: str, part: ImagePart | VideoPart, reduction: ImageReduction | None, place: _Place
    ) -> Visual:
        """Return an image or a video, decoded; what is wrong with it is told with its place among several."""
        try:
            return await self._decoded(owner, part, reduction, place)
        except ImageError as error:
            if place.num_parts == 1:
                raise
            told = f"of {place.num_parts} images and videos, number {place.number}"
            raise ImageError(f"{told}: {error}", error.param) from error

    async def _decoded(
        self, owner: str, part: ImagePart | VideoPart, reduction: ImageReduction | None, place: _Place
    ) -> Visual:
        with_tower = reduction is not None and reduction.needs_tower
        if isinstance(part, ImagePart):
            side = None if reduction is None else self._reducing.seen_side(reduction)
            decode = partial(self._vision.decode, with_tower=with_tower, seen_side=side, num_images=place.num_images)
            return Visual.of_image(await decode(owner, part.data, wants_pixels=place.wants_pixels))
        self._reducing.check_frames(reduction)
        most = self._shape.capacity_tokens if reduction is None else self._most_places(reduction)
        room = FrameRoom(self._prompts.image_prompt.tokens_per_frame, most, reduction is not None)
        video = await self._vision.decode_frames(owner, part, room, with_tower=with_tower)
        return Visual.of_video(video, self._prompts.image_prompt)

    def _most_places(self, reduction: ImageReduction) -> int:
        """Return how many tokens of frames leave no more than a context after a reduction, or have no position."""
        return min(int(self._shape.capacity_tokens / reduction.keep), self._max_positions)

    def _check_length(self, prompt: Prompt, num_dropped: int, num_behind: int, param: str) -> None:
        """Check that a prompt and an answer fit the context behind so many rows."""
        num_tokens, limit = num_behind + prompt.num_tokens - num_dropped, self._shape.capacity_tokens
        if num_tokens + 1 > limit:
            raise ContextLengthError(
                f"the prompt takes {num_tokens} tokens ({prompt.num_image_tokens - num_dropped} of them for "
                f"{prompt.num_images} images); the context holds {limit}{self._limited_by}, one of them for the "
                "answer. Send less text or fewer images.",
                param,
            )
        if prompt.next_position + 1 > self._max_positions:
            raise ContextLengthError(
                f"the prompt takes {prompt.next_position} positions, for image tokens that are left out keep their "
                f"places; the model was made for {self._max_positions}. Send less text or fewer images.",
                param,
            )

    @property
    def _limited_by(self) -> str:
        """Why a context is no longer, where that is neither the model nor `context_tokens`."""
        longest = context_of(self._manifest, self._settings.context_tokens)
        return "" if longest == self._shape.capacity_tokens else ", all that kv_memory_bytes has room for"

    @contextmanager
    def _choices(
        self,
        request: GenerateRequest,
        prepared: Prepared,
        sampling: SamplingParams,
        arrived_s: float,
        choose: Choose | None,
    ) -> Iterator[list[ChoiceAnswer]]:
        """Submit as many sequences of the prompt; cancel them when the block is left, however that happens."""
        prompt = FilledPrompt.of(prepared.prompt, [image.features for image in prepared.images])
        image_keys = [image.key for image in prepared.images]
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
                choices.append(ChoiceAnswer(index, self._engine, stream, own, self._vocabulary, lead, may_call=calls))
            yield choices

    def _shadow(self, request: GenerateRequest, prepared: Prepared, end_ids: Sequence[int]) -> EngineSequence | None:
        """Return a fresh sequence of what an answer is held against; None where it is held against nothing."""
        against = prepared.against
        if against is None:
            return None
        prompt = FilledPrompt.of(against.prompt, [image.features for image in against.images])
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
        self, choices: Sequence[ChoiceAnswer], prepared: Prepared, arrived_s: float
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
            fused = await self._pool.text.run(sequences[0].request_id, self._fusing.fused, prepared.to_fuse, rows)
        yield FinishedEvent(reason, usage, timings, fused)
