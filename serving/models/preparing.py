"""What happens to a request before the engine thread: images decoded and encoded, a prompt written, reduced, judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bundle.errors import ContextLengthError, ImageError
from bundle.prompt import Prompt, PromptBuilder, Turn
from bundle.question import Asked, QuestionReader, question_of
from runtime.cache_shape import CacheShape
from runtime.fused_prefix import FusedPrefix
from runtime.task_vector import TaskVector
from serving.engine.sampling.grammar import Grammars
from serving.models.adapters import Adapters
from serving.models.contrasting import without_images
from serving.models.cut_frames import FrameRoom
from serving.models.fusing import Fusing, Messages
from serving.models.images import EncodedImage
from serving.models.kv import compression_of
from serving.models.learning import Learning
from serving.models.pool import PreprocessPool
from serving.models.prepared import Against, Prepared
from serving.models.reducing import ImageReduction, Reducing, Shown
from serving.models.structures import compiled_structure
from serving.models.together import together
from serving.models.vision import VisionStage
from serving.models.visual import Visual, all_filled, turns_of
from serving.protocol import (
    VCD,
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    TextPart,
    Timings,
    TokenizeRequest,
    Usage,
    VideoPart,
)


@dataclass(frozen=True)
class _Place:
    """Where an image or a video stands in a request.

    Attributes:
        number: Counted from 1.
        num_parts: Images and videos.
        num_images: Of the whole prompt, those of a fused prefix among them.
        wants_pixels: It is decoded, whatever is kept of it.
        question: What the encoder is told beside it; None where it sees images alone.
    """

    number: int
    num_parts: int
    num_images: int
    wants_pixels: bool = False
    question: Asked | None = None


def _texts_of(messages: Sequence[Message]) -> list[Turn]:
    """Return a conversation without what it shows."""
    said = [(each.role, tuple(part.text for part in each.parts if isinstance(part, TextPart))) for each in messages]
    return [Turn(role, texts) for role, texts in said]


def _shown(message: Message) -> list[ImagePart | VideoPart]:
    return [part for part in message.parts if not isinstance(part, TextPart)]


@dataclass(frozen=True)
class Preparing:
    """From a request to what the engine runs.

    Attributes:
        pool: Decodes images, fills templates, tokenizes.
        prompts: Writes prompts.
        vision: Encodes images.
        questions: Reads what the vision encoder reads beside images; None where it sees images alone.
        reducing: Leaves image tokens out.
        fusing: Reads and makes fused prefixes.
        learning: Makes task vectors.
        grammars: Compiles structures.
        adapters: Of the model.
        shape: Of the cache.
        max_positions: That the model was made for.
        limited_by: Why a context is no longer, for messages; "" where the model or a setting says so.
    """

    pool: PreprocessPool
    prompts: PromptBuilder
    vision: VisionStage
    questions: QuestionReader | None
    reducing: Reducing
    fusing: Fusing
    learning: Learning
    grammars: Grammars
    adapters: Adapters
    shape: CacheShape
    max_positions: int
    limited_by: str

    async def prepare(
        self, request: GenerateRequest, reduction: ImageReduction | None, kv: KVCompression | None
    ) -> Prepared:
        """Return prompt and features; structure and prompt are judged before any image is encoded."""
        started_s = time.monotonic()
        owner = request.request_id
        structure = await compiled_structure(
            self.pool.grammars, owner, self.grammars, request.sampling.structure, request.num_choices
        )
        prefix, vector = None, None
        if request.behind is not None:
            read = await self.pool.text.run(owner, self.fusing.read, request.behind, request.adapter)
            prefix, vector = (None, read) if isinstance(read, TaskVector) else (read, None)
        prompt, visuals, num_dropped = await self.prompted(request, reduction, prefix)
        to_fuse = None
        if request.fuses:
            layouts = tuple(layout for visual in visuals for layout in visual.layouts)
            to_fuse = Messages(tuple(turns_of(request.messages, visuals)), layouts, prompt.token_ids)
        num_behind = 0 if prefix is None else prefix.rows.num_rows
        self._check_length(prompt, num_dropped, num_behind, "messages" if request.text is None else "prompt")
        compression = compression_of(kv, prompt.num_tokens - num_dropped, is_default=request.kv is None)
        prompted_s = time.monotonic()
        encoded = await together(self.vision.encode(owner, each) for visual in visuals for each in visual.pictures)
        images = await self._filled(owner, visuals, encoded)
        num_tokens, num_cached = prompt.num_image_tokens, self._num_kept(prompt, images, reduction)
        if reduction is not None and images:
            shown = Shown(prompt, request.messages, visuals, images)
            prompt, images = await self.pool.images.run(owner, self.reducing.apply, reduction, shown)
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
            question_of(_texts_of(request.messages)),
            num_tokens,
            num_cached,
            preprocess_s,
            vision_s,
        )

    async def learned(self, request: GenerateRequest, arrived_s: float) -> FinishedEvent:
        """Return the end of a request whose messages are demonstrations, with their task vector."""
        owner = request.request_id
        shown = [_shown(message) for message in request.messages]
        parts = [(part, len(own)) for own in shown for part in own]  # seen as in a question of its own
        seen_through = self.adapters.seen_through(request.adapter)
        visuals = await together(
            self._visual(owner, part, None, _Place(at, len(parts), num_images, question=seen_through))
            for at, (part, num_images) in enumerate(parts, 1)
        )
        encoded = await together(self.vision.encode(owner, each) for visual in visuals for each in visual.pictures)
        images = await self._filled(owner, visuals, encoded)
        layouts = [layout for visual in visuals for layout in visual.layouts]
        features, number = [image.features for image in images], self.adapters.number(request.adapter)
        demonstrations = await self.pool.text.run(
            owner, self.learning.demonstrations, turns_of(request.messages, visuals), layouts, features, number
        )
        vector, _ = await self.learning.find(demonstrations, request.adapter)
        usage = Usage(
            sum(each.shown.num_tokens for each in demonstrations),
            0,
            sum(each.alone.prompt.num_image_tokens for each in demonstrations),
        )
        timings = Timings(total_s=time.monotonic() - arrived_s)
        return FinishedEvent("stop", usage, timings, vector.to_bytes(), vector.num_heads)

    def _num_kept(self, prompt: Prompt, images: Sequence[EncodedImage], reduction: ImageReduction | None) -> int:
        """Return how many of a prompt's image tokens are of images that were not encoded for it."""
        if prompt.memory is not None and not prompt.memory.is_prompt:  # whose rows take no places in the prompt
            return sum(span.end - span.start for span in prompt.spans if images[span.image].is_kept)
        return self.reducing.num_places(reduction, sum(image.num_rows for image in images if image.is_kept))

    async def _against(self, request: GenerateRequest, prompt: Prompt, visuals: Sequence[Visual]) -> Against | None:
        """Return what an answer is held against: its prompt with images under noise, or one that shows nothing."""
        how, owner = request.sampling.contrast, request.request_id
        if how is None:
            return None
        if isinstance(how, VCD):
            spoilt = [visual.under_noise(how.noise_step) for visual in visuals]
            encoded = await together(self.vision.encode(owner, each) for visual in spoilt for each in visual.pictures)
            against = Against(prompt, await self._filled(owner, spoilt, encoded))
        else:
            bare = replace(request, messages=without_images(request.messages))
            against = Against((await self.prompted(bare, None, None))[0], ())
        num_tokens, most = prompt.num_tokens + against.prompt.num_tokens, self.shape.most_rows
        if num_tokens + 2 > most:
            raise ContextLengthError(
                f"contrast: the two prompts take {num_tokens} tokens, and each answer one more; the cache holds {most} "
                "rows. Send less, leave contrast out, or serve with more --kv-memory.",
                "contrast",
            )
        return against

    async def prompted(
        self, request: GenerateRequest | TokenizeRequest, reduction: ImageReduction | None, prefix: FusedPrefix | None
    ) -> tuple[Prompt, Sequence[Visual], int]:
        """Return the prompt of a request, its images and videos, decoded, and how many image tokens will be dropped."""
        owner, messages, most = request.request_id, request.messages, self.shape.capacity_tokens
        if request.text is not None:
            affixed = not isinstance(request, TokenizeRequest) or request.adds_special_tokens
            of_text = partial(self.prompts.of_text, max_tokens=most, adds_special_tokens=affixed)
            return await self.pool.text.run(owner, of_text, request.text), (), 0
        num_characters = sum(len(p.text) for message in messages for p in message.parts if isinstance(p, TextPart))
        self.prompts.tokenizer.check_characters(num_characters, most)
        parts = [part for message in messages for part in message.parts if not isinstance(part, TextPart)]
        num_images = sum(isinstance(part, ImagePart) for part in parts)
        num_images += 0 if prefix is None else len(prefix.layouts)
        wants_pixels = isinstance(request, GenerateRequest) and isinstance(request.sampling.contrast, VCD)
        question = await self._beside(owner, request) if parts else None
        visuals = await together(
            self._visual(owner, part, reduction, _Place(at, len(parts), num_images, wants_pixels, question))
            for at, part in enumerate(parts, 1)
        )
        layouts = [layout for visual in visuals for layout in visual.layouts]
        num_dropped = self.reducing.num_dropped(reduction, layouts)
        build = partial(
            self.prompts.build,
            tools=request.tools,
            max_tokens=most,
            num_dropped=num_dropped + (0 if prefix is None else prefix.num_dropped_tokens),
            add_generation_prompt=not isinstance(request, TokenizeRequest) or request.opens_answer,
        )
        turns = turns_of(messages, visuals)
        if isinstance(request, GenerateRequest) and request.fuses:
            prompt = await self.pool.text.run(owner, self.fusing.beginning, build, turns, layouts)
        else:
            prompt = await self.pool.text.run(owner, self.fusing.prompt, build, turns, layouts, prefix)
        return prompt, visuals, num_dropped

    async def _beside(self, owner: str, request: GenerateRequest | TokenizeRequest) -> Asked | None:
        """Return what the vision encoder is told beside every image of a request; None where it sees images alone."""
        if self.questions is not None:
            return await self.pool.text.run(owner, self.questions.ids, _texts_of(request.messages))
        return self.adapters.seen_through(request.adapter) if isinstance(request, GenerateRequest) else None

    async def _filled(
        self, owner: str, visuals: Sequence[Visual], encoded: Sequence[EncodedImage]
    ) -> Sequence[EncodedImage]:
        """Return what fills the prompt; means and rows of a video's features take milliseconds, and a thread."""
        if all(visual.plan is None for visual in visuals):
            return all_filled(visuals, encoded)
        return await self.pool.images.run(owner, all_filled, visuals, encoded)

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
            side = None if reduction is None else self.reducing.seen_side(reduction)
            image = await self.vision.decode(
                owner,
                part.data,
                with_tower=with_tower,
                seen_side=side,
                num_images=place.num_images,
                wants_pixels=place.wants_pixels,
                question=place.question,
            )
            return Visual.of_image(image)
        self.reducing.check_frames(reduction)
        most = self.shape.capacity_tokens if reduction is None else self._most_places(reduction)
        shape = self.prompts.image_prompt
        room = FrameRoom(shape.tokens_per_frame, most, reduction is not None, shape.frame_groups)
        video = await self.vision.decode_frames(owner, part, room, with_tower=with_tower, question=place.question)
        return Visual.of_video(video, self.prompts.image_prompt)

    def _most_places(self, reduction: ImageReduction) -> int:
        """Return how many tokens of frames leave no more than a context after a reduction, or have no position."""
        return min(int(self.shape.capacity_tokens / reduction.keep), self.max_positions)

    def _check_length(self, prompt: Prompt, num_dropped: int, num_behind: int, param: str) -> None:
        """Check that a prompt and an answer fit the context behind so many rows."""
        num_tokens, limit = num_behind + prompt.num_tokens - num_dropped, self.shape.capacity_tokens
        if num_tokens + 1 > limit:
            raise ContextLengthError(
                f"the prompt takes {num_tokens} tokens ({prompt.num_image_tokens - num_dropped} of them for "
                f"{prompt.num_images} images); the context holds {limit}{self.limited_by}, one of them for the "
                "answer. Send less text or fewer images.",
                param,
            )
        if prompt.next_position + 1 > self.max_positions:
            raise ContextLengthError(
                f"the prompt takes {prompt.next_position} positions, for image tokens that are left out keep their "
                f"places, and seconds of a video may take some; the model was made for {self.max_positions}. Send less "
                "text, fewer images, or a shorter video.",
                param,
            )
