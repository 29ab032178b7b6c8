"""A model that embeds by a decoder, ready to serve: texts, images and both together become vectors."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import numpy as np

from bundle.dims import Pooling
from bundle.errors import ParameterError
from bundle.manifest import InputType
from runtime.encoders import Vectors
from runtime.filled_prompt import FilledPrompt
from serving.models.prompted import PromptedModel
from serving.models.together import together
from serving.models.vectors import VectorModel, check_inputs, cut_all
from serving.protocol import EmbedInput, EmbedRequest, EmbedResult, JoinedPart, TokensPart


class EmbedderModel(PromptedModel, VectorModel):
    """One bundle whose decoder gives vectors."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one unit vector per input, in order, or one for each of its tokens.

        Raises:
            RequestError: No inputs, a size to which vectors are not cut, an input that is longer than the model reads
                and not to be cut, ids that are not the model's, bytes that are not an image.
        """
        check_inputs(request, self._dims.sizes, name=self._manifest.name, tasks=self._dims.adapter_names)
        pooling = self._pooling(request)
        most_tokens = self._writer.most_tokens(request.truncate_tokens)
        kinds: tuple[InputType | None, ...] = request.input_types or (None,) * len(request.inputs)
        with self._admission.admit():
            found = await together(
                self._embed_one(request, part, kind, most_tokens, pooling)
                for part, kind in zip(request.inputs, kinds, strict=True)
            )
            own = [vectors for vectors, _ in found]
            vectors = await cut_all(self._pool.text, request.request_id, own, request.dimensions, is_raw=request.is_raw)
        num_tokens = sum(tokens for _, tokens in found)
        if pooling == "tokens":
            return EmbedResult(tuple(vectors), num_tokens)
        return EmbedResult(np.concatenate(vectors), num_tokens)

    def _pooling(self, request: EmbedRequest) -> Pooling:
        """Return how an input's vectors are made of its tokens'.

        Raises:
            ParameterError: One of each input, of a model whose tokens keep their own.
        """
        if request.granularity == "token":
            if request.dimensions is not None and self._dims.late_size is not None:
                raise ParameterError(
                    f"dimensions = {request.dimensions}: several vectors of one input are not cut; leave it out",
                    "dimensions",
                )
            return "tokens"
        if request.granularity == "input" and self._dims.pooling == "tokens":
            raise ParameterError(
                f"task embed: {self._manifest.name} has a vector for every token; ask for token_embed", "task"
            )
        return self._dims.pooling

    async def _embed_one(
        self,
        request: EmbedRequest,
        part: EmbedInput,
        kind: InputType | None,
        most_tokens: int | None,
        pooling: Pooling,
    ) -> tuple[Vectors, int]:
        """Return an input's vectors and the tokens that it took."""
        owner, adapter = request.request_id, self._adapter(request)
        async with self._turns.place(owner):
            if isinstance(part, TokensPart):
                prompt = await self._pool.text.run(owner, self._writer.of_ids, part.token_ids, most_tokens)
                filled = FilledPrompt(prompt, adapter=adapter)
            else:
                parts = part.parts if isinstance(part, JoinedPart) else (part,)
                prefix = self._dims.prefix(kind, adapter)
                write = partial(
                    self._writer.write, prefix=prefix, instruction=request.instruction, most_tokens=most_tokens
                )
                filled = replace(await self._filled(owner, parts, write), adapter=adapter)
            return await asyncio.wrap_future(self._worker.submit((filled, pooling))), filled.num_tokens

    def _adapter(self, request: EmbedRequest) -> int:
        """Return the number of the adapter that a request chose; it has been checked."""
        return 0 if request.task is None else self._dims.adapter_names.index(request.task)
