"""A decoder that ranks, ready to serve: whether it would say yes or no to a query and a document, read together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from bundle.errors import ParameterError
from bundle.image import TileLayout
from bundle.prompt import Prompt
from runtime.pair_encoder import fits
from serving.models.pair_model import PairModel
from serving.models.prompted import PromptedModel
from serving.models.together import together
from serving.models.vectors import refuse_boxes
from serving.protocol import EmbedInput, ImagePart, JoinedPart, ScoreRequest, ScoreResult, TextPart, TokensPart


class RankerModel(PromptedModel, PairModel):
    """One bundle whose decoder scores pairs of texts, images and both together."""

    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits, in order: the probability of yes, of yes and no.

        Raises:
            RequestError: Token ids, a pair that is longer than the model reads and not to be cut, bytes that are not an
                image, a part of one.
        """
        refuse_boxes([part for pair in request.pairs for part in pair], self._manifest.name)
        most_tokens = self._writer.most_tokens(request.truncate_tokens)
        with self._admission.admit():
            found = await together(self._score_one(request, *pair, most_tokens) for pair in request.pairs)
        raw = np.array([score for score, _ in found], np.float64)
        scores = raw.astype(np.float32) if request.is_raw else fits(raw)
        return ScoreResult(scores, sum(tokens for _, tokens in found))

    async def _score_one(
        self, request: ScoreRequest, query: EmbedInput, document: EmbedInput, most_tokens: int | None
    ) -> tuple[float, int]:
        """Return a pair's raw score and the tokens that it took."""
        owner, parts = request.request_id, (_parts(query), _parts(document))
        async with self._turns.place(owner):
            write = partial(self._pair, len(parts[0]), instruction=request.instruction, most_tokens=most_tokens)
            filled = await self._filled(owner, parts[0] + parts[1], write)
            (vector,) = await asyncio.wrap_future(self._worker.submit((filled, "last")))
            return float(vector[0]), filled.num_tokens

    def _pair(
        self,
        num_first: int,
        parts: Sequence[TextPart | ImagePart],
        layouts: Sequence[TileLayout],
        *,
        instruction: str | None,
        most_tokens: int | None,
    ) -> Prompt:
        """Return the prompt of parts, of which so many are the query's."""
        return self._writer.write_pair(parts[:num_first], parts[num_first:], layouts, instruction, most_tokens)


def _parts(given: EmbedInput) -> tuple[TextPart | ImagePart, ...]:
    """Return the texts and images of an input.

    Raises:
        ParameterError: It is token ids, which no template takes.
    """
    if isinstance(given, TokensPart):
        raise ParameterError("an input of token ids: the model writes two inputs into one prompt; send texts", "input")
    return given.parts if isinstance(given, JoinedPart) else (given,)
