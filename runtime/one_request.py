"""One request from arrays to tokens, without a server: what a gate measures, through the graphs and steps that serve.

Prompts run in chunks through the graph for prompts and sampled tokens one at a time through the graph for steps, over a
cache written in place, as the engine runs them; a test holds the two equal, token by token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice, takewhile
from typing import Protocol

import numpy as np
from PIL import Image

from bundle.dims import DecoderDims
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ContextLengthError
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.image_tokens import ImageReducer, ShownImage, gives_tower
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.question import QuestionIds, QuestionReader
from bundle.reduced_prompt import reduced
from runtime.cache_shape import cache_shape
from runtime.chunks import chunks
from runtime.decoder import Decoder, Logits, TokenGraphs
from runtime.encoder import Encoder, open_encoder
from runtime.encoders import encode_images, split_seen
from runtime.feeds import Embeds, Int64, TokenBatch, TokenRun
from runtime.filled_prompt import FilledPrompt, positions_from
from runtime.graph import Array
from runtime.memory import filled_memory
from runtime.segmented_prompt import Choose, Layers, SegmentedPrompt
from runtime.segments import read_segments
from runtime.settings import DEFAULT_CHUNK_TOKENS, DEFAULT_VISION_TILES, RuntimeSettings
from runtime.states import StateBuffers, empty_states

_DEFAULTS = RuntimeSettings()
_FEWEST_ROWS = 128
"""Of a cache, so that it is not made anew for every prompt that is a little longer."""
_RUNNING, _KEPT = 0, 1
"""The slot that runs, and the one that keeps states of fixed size as the prompt left them."""


@dataclass(frozen=True)
class SeenImages:
    """Images as a vision encoder hands them to a decoder.

    Attributes:
        layouts: How each image was cut; its last tile is always the whole image.
        features: Of each image, [tiles, P, D], or [rows, D] where it is no tiles of one size.
        digests: Of each image's pixels, where one was asked for.
        towers: Of each image, [tiles, P, 1 + C] as `bundle.image_tokens.ShownImage.tower`, where it was asked for.
        images: Themselves, for who encodes them otherwise: smaller, or with another question.
        question: That they were seen with, where the encoder reads it.
    """

    layouts: tuple[TileLayout, ...]
    features: tuple[Embeds, ...]
    digests: tuple[bytes, ...] = ()
    towers: tuple[Array, ...] = ()
    images: tuple[Image.Image, ...] = ()
    question: QuestionIds | None = None

    @property
    def whole(self) -> list[Embeds]:
        """Each image's features of the tile that shows all of it: [P, D], or all of them where no tile is apart."""
        return [tiles[-1] if tiles.ndim > 2 else tiles for tiles in self.features]


class ChooseRows(Protocol):
    """Chooses which rows of a prompt stay in the cache once it was read.

    Attributes:
        outputs: Optional ones of the graph for prompts that it wants of every run.
    """

    outputs: tuple[str, ...]

    def __call__(
        self, states: StateBuffers, slot: int, prompt: FilledPrompt, told: Sequence[Mapping[str, Array]]
    ) -> Sequence[int]:
        """Drop rows of a slot and return [G] how many stay; `told` are the outputs of every run."""
        ...


@dataclass(frozen=True)
class Prefilled:
    """A prompt that is in the cache. Valid until the next one is: several answers may start from it.

    Attributes:
        prompt: What was run.
        logits: [V], from which the first token of an answer is chosen.
        capacity_tokens: Of the cache.
        rows: [G] rows that it has in the cache; none are told of another runtime's.
    """

    prompt: FilledPrompt
    logits: Logits
    capacity_tokens: int
    rows: Sequence[int] = ()


@dataclass(frozen=True)
class _ToldPrompt:
    """A prompt that was run for rows of it to be chosen.

    Attributes:
        prompt: What was run.
        decoder: Whose cache it was in.
        outputs: Optional ones that were wanted.
        logits: [V] of its last token.
        told: The outputs of every run.
        rows: All that it left, by state input.
    """

    prompt: FilledPrompt
    decoder: Decoder
    outputs: frozenset[str]
    logits: Logits
    told: Sequence[Mapping[str, Array]]
    rows: Mapping[str, Array]

    def is_of(self, prompt: FilledPrompt, decoder: Decoder, outputs: Sequence[str]) -> bool:
        """Return whether this is what a run would give."""
        return self.prompt is prompt and self.decoder is decoder and self.outputs.issuperset(outputs)


class VisionLanguageRunner:
    """Prompts, features, logits and greedy answers of a vision-language bundle.

    Args:
        bundle: The bundle.
        settings: Provider and threads.
        whole_answers: Run a given answer at once through the graph for prompts, not token by token through the one for
            steps. For fp32 bundles, whose one graph says the same either way but for rounding, in a fraction of the
            time; of a variant it would measure another arithmetic than the one that serves.
    """

    def __init__(self, bundle: Bundle, settings: RuntimeSettings = _DEFAULTS, *, whole_answers: bool = False) -> None:
        self._bundle = bundle
        self._settings = settings
        self._whole_answers = whole_answers
        self._prompts = PromptBuilder.from_bundle(bundle)
        self._images = ImageSpec.read(bundle.path(PREPROCESSOR))
        if bundle.manifest.decoder is None:
            raise BundleFormatError(f"{bundle.directory} has no decoder; it cannot answer questions")
        self._dims: DecoderDims = bundle.manifest.decoder
        self._eos_token_ids = bundle.manifest.eos_token_ids
        self._current: Prefilled | None = None
        self._answering: object = None
        self._bound: Decoder | None = None
        self._told: _ToldPrompt | None = None

    # Opened late: calibration wants a part of them.
    @cached_property
    def _vision(self) -> Encoder:
        return open_encoder(self._bundle, self._bundle.manifest.graph("vision_encoder"), self._settings)

    @cached_property
    def _graphs(self) -> TokenGraphs:
        return TokenGraphs(self._bundle, self._settings)

    @cached_property
    def _questions(self) -> QuestionReader | None:
        return QuestionReader.from_bundle(self._bundle)

    @property
    def gives_tower(self) -> bool:
        """Whether the bundle tells what some reducers read of its vision tower."""
        return gives_tower(self._vision.component)

    def see(self, images: Sequence[Image.Image], turns: Sequence[Turn] = (), *, with_tower: bool = False) -> SeenImages:
        """Return what the vision encoder makes of images; none are fine.

        Args:
            images: Upright and RGB.
            turns: That ask of them, for an encoder that reads the question beside the image.
            with_tower: And what the tower's attention says of them, which some reducers read.

        Raises:
            SignatureError: The bundle's encoder does not tell that.
        """
        question = None if self._questions is None or not images else self._questions.ids(turns)
        spec = self._images.among(len(images))
        layouts = tuple(spec.layout(*image.size) for image in images)
        digests = tuple(sha256(image.tobytes()).digest() for image in images)
        encode = partial(encode_images, questions=[question], with_tower=with_tower)
        seen = [self._seen(spec, image, layout, encode) for image, layout in zip(images, layouts, strict=True)]
        if not with_tower:
            return SeenImages(layouts, tuple(seen), digests, images=tuple(images), question=question)
        split = [split_seen(self._vision, each) for each in seen]
        features, towers = tuple(each for each, _ in split), tuple(tower for _, tower in split)
        return SeenImages(layouts, features, digests, towers, tuple(images), question)

    def _asked(self, seen: SeenImages, turns: Sequence[Turn]) -> SeenImages:
        """Return images as they are seen with the question of a conversation, whatever they were seen with."""
        if self._questions is None or not seen.images or seen.question == self._questions.ids(turns):
            return seen
        return self.see(seen.images, turns, with_tower=bool(seen.towers))

    def _seen_smaller(self, image: Image.Image, part: int, whole: int) -> Embeds:
        """Return an image's features, its tiles scaled down to a part of their side."""
        tiles = self._images.smaller(self._images.cut(image), self._images.tile_size_px[0] * part // whole)
        groups = tuple(self._images.groups(tiles))
        (features,) = encode_images(self._vision, [groups], DEFAULT_VISION_TILES)
        return features

    def _seen(
        self, spec: ImageSpec, image: Image.Image, layout: TileLayout, encode: Callable[..., list[Array]]
    ) -> Embeds:
        """Return an image's features in the order of its tokens; images run apart."""
        (features,) = encode(self._vision, [spec.preprocess([image]).groups], DEFAULT_VISION_TILES)
        arranged: Embeds = self._prompts.image_prompt.arranged(features, layout)
        return arranged

    def prompt(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> FilledPrompt:
        """Return the prompt of a conversation about images."""
        return self.prompt_about(turns, self.see(images, turns))

    def prompt_about(
        self, turns: Sequence[Turn], seen: SeenImages, reducer: ImageReducer | None = None
    ) -> FilledPrompt:
        """Return the prompt of a conversation about images that were seen already, or of what a reducer leaves.

        An encoder that reads questions sees them once more where they were seen with another one.
        """
        seen = self._asked(seen, turns)
        prompt = self._prompts.build(turns, seen.layouts)
        if reducer is None or reducer.is_whole:
            return FilledPrompt.of(prompt, seen.features)
        side, places = reducer.seen_side(self._prompts.image_prompt.tokens_per_tile), None
        shown = seen.features
        if side is not None:
            places = self._prompts.image_prompt.tokens_per_tile
            shown = tuple(self._seen_smaller(image, side, math.isqrt(places)) for image in seen.images)
        texts = self._texts_of_images(turns) if reducer.needs_text else [None] * len(seen.layouts)
        towers = seen.towers if reducer.needs_tower else [None] * len(seen.layouts)
        images = [
            reducer.apply(ShownImage(features, digest, layout.is_uniform, tower, text, places))
            for features, digest, layout, tower, text in zip(
                shown, seen.digests, seen.layouts, towers, texts, strict=True
            )
        ]
        shorter = reduced(prompt, [image.rows for image in images])
        return FilledPrompt.of(shorter, [image.features for image in images])

    def _texts_of_images(self, turns: Sequence[Turn]) -> list[Embeds]:
        """Return [N, D] for each image: the embeddings of the texts in its turn."""
        found = []
        for turn in turns:
            ids = self._prompts.tokenizer.encode_all_plain(part for part in turn.parts if isinstance(part, str))
            embeds = self._graphs.embed_text(ids)
            found += [embeds for part in turn.parts if part is Placeholder.IMAGE]
        return found

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer behind a prompt, and of the token that ends it."""
        return [*self._prompts.answer_ids(answer), *self._eos_token_ids[:1]]

    def prefill(
        self,
        prompt: FilledPrompt,
        room_tokens: int,
        choose: Choose | None = None,
        choose_rows: ChooseRows | None = None,
    ) -> Prefilled:
        """Run a prompt, with room for so many tokens more where the model's limit allows.

        Args:
            prompt: Of at least one token.
            room_tokens: For its answer.
            choose: Drops image tokens between the segments of the decoder; None: the prompt runs whole.
            choose_rows: Drops rows of the cache once a prompt was read that runs whole; None: all stay.

        Raises:
            ContextLengthError: The prompt alone is longer than the model's limit.
        """
        self._current = None
        num_tokens, limit = prompt.num_tokens, self._dims.max_positions
        if not num_tokens:
            raise ValueError("a prompt of no tokens says nothing")
        if num_tokens > limit:
            raise ContextLengthError(f"the prompt takes {num_tokens} tokens; the model holds {limit}. Shorten it.")
        decoder = self._with_room(min(num_tokens + room_tokens, limit))
        decoder.states.clear(_RUNNING)
        decoder.states.fill(_RUNNING, prompt.memory)
        if choose is not None:
            logits, rows = self._reduced(decoder, prompt, choose)
        elif choose_rows is not None:
            logits, rows = self._chosen(decoder, prompt, choose_rows)
        else:
            logits, rows = self._read(decoder, prompt)
        if self._bundle.manifest.state_bytes_per_sequence:
            decoder.states.copy(_RUNNING, _KEPT, self._lengths(0))
        self._current = Prefilled(prompt, logits.copy(), decoder.shape.capacity_tokens, rows)
        return self._current

    def _read(self, decoder: Decoder, prompt: FilledPrompt) -> tuple[Logits, Sequence[int]]:
        """Run a prompt through the graph for prompts; return its last logits and the rows that it has."""
        for start, end in chunks(prompt.num_tokens, DEFAULT_CHUNK_TOKENS, prompt.prompt.seen):
            run = prompt.run(start, end, self._lengths(start), [end - start - 1])
            logits = decoder.run("prompt", _RUNNING, [run])[0, 0]
        return logits, self._lengths(prompt.num_tokens)

    def _chosen(self, decoder: Decoder, prompt: FilledPrompt, choose_rows: ChooseRows) -> tuple[Logits, Sequence[int]]:
        """Run a prompt as `_read` does and drop rows; return its last logits and the rows that it has.

        A prompt that was run last for other rows to be chosen is not run again: what it left is put back.
        """
        read = self._told
        if read is None or not read.is_of(prompt, decoder, choose_rows.outputs):
            read = self._told = self._run_telling(decoder, prompt, choose_rows.outputs)
        else:
            decoder.states.put(_RUNNING, read.rows)
        return read.logits, choose_rows(decoder.states, _RUNNING, prompt, read.told)

    def _run_telling(self, decoder: Decoder, prompt: FilledPrompt, outputs: tuple[str, ...]) -> _ToldPrompt:
        told = []
        for start, end in chunks(prompt.num_tokens, DEFAULT_CHUNK_TOKENS, prompt.prompt.seen):
            run = prompt.run(start, end, self._lengths(start), [end - start - 1])
            logits, found = decoder.run_with(outputs, "prompt", _RUNNING, [run])
            told.append(found)
        rows = decoder.states.stored(_RUNNING, np.arange(prompt.num_tokens))
        return _ToldPrompt(prompt, decoder, frozenset(outputs), logits[0, 0].copy(), told, rows)

    def _reduced(self, decoder: Decoder, prompt: FilledPrompt, choose: Choose) -> tuple[Logits, Sequence[int]]:
        """Run a prompt segment by segment; return its last logits and the rows that it has."""
        segmented = SegmentedPrompt(prompt, Layers.of(self._bundle.manifest), choose)
        return read_segments(decoder, _RUNNING, segmented, DEFAULT_CHUNK_TOKENS), segmented.rows

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each token of a given answer would be chosen: [len(answer_ids), V].

        Teacher forcing: the answer's own tokens are fed, whatever the model would have said.

        Raises:
            ContextLengthError: The answer does not fit behind the prompt.
            ValueError: The answer has no token.
        """
        if not answer_ids:
            raise ValueError("an answer of no tokens has no logits")
        if prompt.prompt.num_tokens + len(answer_ids) - 1 > prompt.capacity_tokens:
            raise ContextLengthError(
                f"a prompt of {prompt.prompt.num_tokens} tokens and an answer of {len(answer_ids)} exceed the cache's "
                f"{prompt.capacity_tokens} (the model's limit: {self._dims.max_positions}); leave this sample out"
            )
        steps = self._steps(prompt)
        next(steps)
        if self._whole_answers and self._bound is not None:
            return np.concatenate([prompt.logits[None], *self._whole_runs(self._bound, prompt, answer_ids[:-1])])
        return np.stack([prompt.logits, *(steps.send(token_id).copy() for token_id in answer_ids[:-1])])

    def answer_logits(self, prompt: FilledPrompt, answer_ids: Sequence[int]) -> Logits:
        """Return what `forced_logits` returns, of a prompt that was not run yet."""
        return self.forced_logits(self.prefill(prompt, len(answer_ids)), answer_ids)

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply to a prompt, without the token that ends it."""
        tokens = islice(self.greedy_tokens(prompt), max_tokens)
        return list(takewhile(lambda token_id: token_id not in self._eos_token_ids, tokens))

    def greedy_tokens(self, prompt: Prefilled) -> Iterator[int]:
        """Yield the likeliest token after a prompt and each token after it, until the cache is full."""
        steps = self._steps(prompt)
        token_id = int(next(steps).argmax())
        yield token_id
        for _ in range(prompt.prompt.num_tokens, prompt.capacity_tokens):
            token_id = int(steps.send(token_id).argmax())
            yield token_id

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as a reader sees it."""
        return self._prompts.tokenizer.decode(list(token_ids))

    def answer_feeds(self, prompt: FilledPrompt, answer_ids: Sequence[int]) -> dict[str, Array]:
        """Return the decoder's inputs for a prompt and its answer in one run, to score each token of the answer."""
        whole = prompt.run(0, prompt.num_tokens, self._lengths(0), ())
        behind = positions_from(prompt.prompt.next_position, len(answer_ids) - 1, whole.positions)
        run = TokenRun(
            np.concatenate([whole.ids, np.array(answer_ids[:-1], np.int64)]),
            np.concatenate([whole.positions, behind], axis=-1),
            whole.lengths,
            range(prompt.num_tokens - 1, prompt.num_tokens + len(answer_ids) - 1),
            whole.features,
            around=None if whole.around is None else np.pad(whole.around, ((0, 0), (0, len(answer_ids) - 1))),
            seen=_joined(whole.seen, prompt.seen_by(len(answer_ids) - 1)),
            adapter=prompt.adapter,
        )
        feeds = self._graphs.feeds("prompt", self._graphs.step(TokenBatch.of([run])))
        states = self._bundle.manifest.states
        return {**feeds, **empty_states(states, 1, len(run.ids)), **filled_memory(states, prompt.memory)}

    def _steps(self, prompt: Prefilled) -> Generator[Logits, int, None]:
        """Yield [V] of the token after a prompt, then of the token after each one that is sent.

        Raises:
            ValueError: Another prompt was run since, or another answer begun.
        """
        self._answering = this = object()
        if prompt is not self._current or self._bound is None:
            raise ValueError("another prompt was run since this one, in the same cache")
        if self._bundle.manifest.state_bytes_per_sequence:
            self._bound.states.copy(_KEPT, _RUNNING, self._lengths(0))
        position, logits = prompt.prompt.prompt.next_position, prompt.logits
        rows = list(prompt.rows)
        while True:
            token_id = yield logits
            if prompt is not self._current or this is not self._answering:
                raise ValueError("another prompt or answer was begun since this one, in the same cache")
            places = positions_from(position, 1, prompt.prompt.prompt.positions)
            seen, adapter = prompt.prompt.seen_by(1), prompt.prompt.adapter
            run = TokenRun(np.array([token_id], np.int64), places, rows, [0], seen=seen, adapter=adapter)
            logits = self._bound.run("step", _RUNNING, [run])[0, 0]
            rows, position = [held + 1 for held in rows], position + 1

    def _whole_runs(self, decoder: Decoder, prompt: Prefilled, token_ids: Sequence[int]) -> Iterator[Logits]:
        """Yield [n, V] of what follows each of the tokens behind a prompt, in runs of the graph for prompts."""
        places = positions_from(prompt.prompt.prompt.next_position, len(token_ids), prompt.prompt.prompt.positions)
        for start, end in chunks(len(token_ids), DEFAULT_CHUNK_TOKENS):
            ids, rows = np.array(token_ids[start:end], np.int64), [held + start for held in prompt.rows]
            seen = prompt.prompt.seen_by(end - start)
            adapter = prompt.prompt.adapter
            run = TokenRun(ids, places[..., start:end], rows, range(end - start), seen=seen, adapter=adapter)
            yield decoder.run("prompt", _RUNNING, [run])[0].copy()

    def _lengths(self, num_rows: int) -> list[int]:
        """Return the lengths of a sequence that has lost no row."""
        return [num_rows] * self._graphs.num_length_groups

    def _with_room(self, num_rows: int) -> Decoder:
        """Return the decoder with a cache of at least so many rows."""
        if self._bound is None or self._bound.shape.capacity_tokens < num_rows:
            grown = 2 * self._bound.shape.capacity_tokens if self._bound else _FEWEST_ROWS
            capacity = min(max(num_rows, grown), self._dims.max_positions)
            slots = 2 if self._bundle.manifest.state_bytes_per_sequence else 1
            self._bound = Decoder(self._graphs, cache_shape(self._bundle.manifest, slots, capacity))
        return self._bound


def _joined(first: Int64 | None, second: Int64 | None) -> Int64 | None:
    """Return what tokens of a prompt and of its answer see of the memory; None where there is none."""
    return None if first is None or second is None else np.concatenate([first, second])
