"""A model that embeds by a decoder, ready to serve: texts, images and both together become vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bundle.directory import Bundle
from bundle.errors import BundleFormatError, TaskError
from bundle.manifest import ComponentName, EmbedderDims, InputType
from bundle.prompt import Prompt, PromptBuilder
from bundle.text import Tokenizer
from runtime.canary import check_canary
from runtime.encoders import Vectors
from runtime.filled_prompt import FilledPrompt
from runtime.prompt_embedder import PromptEmbedder
from runtime.room import check_room
from runtime.session import Session
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.input_writer import InputWriter, longest_input
from serving.models.pool import PreprocessPool
from serving.models.together import together
from serving.models.tokens import told_tokens
from serving.models.turns import Turns
from serving.models.vectors import VectorModel, check_inputs, cut
from serving.models.vision import VisionStage
from serving.protocol import (
    EmbedInput,
    EmbedRequest,
    EmbedResult,
    ImagePart,
    JoinedPart,
    TextPart,
    TokenizeRequest,
    TokenizeResult,
    TokensPart,
)
from serving.settings import EngineSettings

_INPUTS_AHEAD = 32
"""Of all requests, that are decoded and written at once; further ones wait for their turn."""


class EmbedderModel(VectorModel):
    """One bundle whose decoder gives vectors.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images, fills templates, tokenizes.
        opened: Sessions of the bundle that answer as well, by the graph's name.

    Raises:
        BundleError: A graph, the tokenizer or the template is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: EngineSettings,
        pool: PreprocessPool,
        opened: Mapping[ComponentName, Session] | None = None,
    ) -> None:
        manifest = bundle.manifest
        longest = longest_input(manifest, settings)
        if manifest.embedder is None or longest is None:
            raise BundleFormatError(f"{bundle.directory} has no sizes of vectors; it cannot embed")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        self._dims: EmbedderDims = manifest.embedder
        self._prompts = PromptBuilder.from_bundle(bundle, of_inputs=True)
        self._writer = InputWriter(self._prompts, self._dims, longest)
        self._longest = longest
        self._vision = VisionStage(bundle, settings, pool)
        self._embedder = PromptEmbedder(bundle, settings, opened or {})
        if settings.check_golden and opened is None:
            check_canary(bundle, {**self._vision.sessions, **self._embedder.sessions})
        self._turns = Turns(_INPUTS_AHEAD)
        self._worker: BatchWorker[FilledPrompt, Vectors] = BatchWorker(
            f"embed-{manifest.name}",
            self._embedder.embed,
            lambda prompt: prompt.num_tokens,
            settings.chunk_tokens,
            settings.patience,
        )

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        return {self._worker: self._warm_up, **self._vision.workers}

    def _warm_up(self) -> None:
        self._embedder.embed([FilledPrompt(self._writer.write([TextPart("warm-up")], (), None, None, None))])

    @property
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        return {
            "num_requests_running": float(self._admission.num_admitted),
            **self._vision.gauges,
            "num_preprocess_waiting": float(self._pool.num_preprocess_waiting),
        }

    @property
    def tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer."""
        return self._prompts.tokenizer

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a text as it is embedded, with the model's template around it, or bare.

        Raises:
            TaskError: A conversation is none.
            ContextLengthError: The text is longer than any that is embedded.
        """
        if request.text is None:
            raise TaskError(f"{self._manifest.name} embeds; it reads no conversations. Send prompt.", "messages")
        self.tokenizer.check_characters(len(request.text), self._longest)
        if not request.adds_special_tokens:
            bare = await self._pool.text.run(request.request_id, self.tokenizer.encode_plain, request.text)
            return told_tokens(self.tokenizer, bare)
        prompt = await self._pool.text.run(
            request.request_id, self._writer.write, [TextPart(request.text)], (), None, None, None
        )
        return told_tokens(self.tokenizer, prompt.token_ids.tolist())

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one unit vector per input, in order, or one for each of its tokens.

        Raises:
            RequestError: No inputs, a size to which vectors are not cut, an input that is longer than the model reads
                and not to be cut, ids that are not the model's, bytes that are not an image.
        """
        check_inputs(request, self._dims.sizes)
        most_tokens = self._writer.most_tokens(request.truncate_tokens)
        kinds: tuple[InputType | None, ...] = request.input_types or (None,) * len(request.inputs)
        with self._admission.admit():
            found = await together(
                self._embed_one(request, part, kind, most_tokens)
                for part, kind in zip(request.inputs, kinds, strict=True)
            )
        vectors = tuple(cut(own, request.dimensions) for own, _ in found)
        num_tokens = sum(tokens for _, tokens in found)
        if self._dims.pooling == "tokens":
            return EmbedResult(vectors, num_tokens)
        return EmbedResult(np.concatenate(vectors), num_tokens)

    async def _embed_one(
        self, request: EmbedRequest, part: EmbedInput, kind: InputType | None, most_tokens: int | None
    ) -> tuple[Vectors, int]:
        """Return an input's vectors and the tokens that it took."""
        owner = request.request_id
        async with self._turns.place(owner):
            if isinstance(part, TokensPart):
                prompt = await self._pool.text.run(owner, self._writer.of_ids, part.token_ids, most_tokens)
                filled = FilledPrompt(prompt)
            else:
                parts = part.parts if isinstance(part, JoinedPart) else (part,)
                write = partial(self._writer.write, kind=kind, instruction=request.instruction, most_tokens=most_tokens)
                filled = await self._filled(owner, parts, write)
            return await asyncio.wrap_future(self._worker.submit(filled)), filled.num_tokens

    async def _filled(
        self, owner: str, parts: tuple[TextPart | ImagePart, ...], write: Callable[..., Prompt]
    ) -> FilledPrompt:
        """Return the prompt of texts and images, which is judged before any image is encoded."""
        images = [part for part in parts if isinstance(part, ImagePart)]
        decoded = await together(self._vision.decode(owner, image.data) for image in images)
        prompt = await self._pool.text.run(owner, write, parts, [image.layout for image in decoded])
        encoded = await together(self._vision.encode(owner, image) for image in decoded)
        return FilledPrompt.of(prompt, [image.features for image in encoded])
