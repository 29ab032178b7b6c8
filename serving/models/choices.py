"""The choices of one request: as many sequences of one prompt, each with a seed of its own, told as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from bundle.detokenizer import Detokenizer
from bundle.grounding import Grounded, KnownGrounding
from bundle.text import Tokenizer
from bundle.token_bytes import BytesDetokenizer, TokenBytes
from bundle.tools import CALL_END, CALL_START
from serving.engine.engine import Engine
from serving.engine.sampling.choice import Choice
from serving.engine.streams import Failed, Sampled, TokenStream
from serving.models.answer import AnswerText
from serving.protocol import FinishReason, SamplingParams, Structure, TokenEvent, TokenLogprob

Item = TypeVar("Item")


def sampling_of(sampling: SamplingParams, index: int) -> SamplingParams:
    """Return how the tokens of one choice are chosen: with the request's seed plus its index, as vLLM does."""
    return sampling if sampling.seed is None or not index else replace(sampling, seed=sampling.seed + index)


@dataclass(frozen=True)
class Vocabulary:
    """How ids become text.

    Attributes:
        tokenizer: The model's.
        token_bytes: Of the same tokenizer.
        eos_ids: End an answer, where the request does not ignore them, and are no part of its text.
        grounding: How boxes stand in its text; None where the model says none.
    """

    tokenizer: Tokenizer
    token_bytes: TokenBytes
    eos_ids: Collection[int]
    grounding: KnownGrounding | None = None

    def detokenizer(self, structure: Structure | None, *, may_call: bool) -> Detokenizer | BytesDetokenizer:
        """Return a fresh decoder for an answer: by bytes where it has a structure, which nothing may tidy up.

        Text that may hold calls is decoded as all text is, but for marks that would have none.
        """
        marks = self._special_marks if may_call else frozenset[int]()
        is_free = structure is None or not structure.holds_text
        return Detokenizer(self.tokenizer) if is_free and not marks else self.token_bytes.detokenizer(marks)

    @cached_property
    def _special_marks(self) -> frozenset[int]:
        """Ids of the marks around calls, where they are tokens that an answer's text is told without."""
        added = self.tokenizer.added_tokens
        return frozenset(token.id for token in added if token.is_special and token.text in (CALL_START, CALL_END))


class ChoiceAnswer:
    """One choice under way.

    Args:
        index: Of the choice.
        engine: Runs it.
        stream: Of its tokens.
        sampling: Of its tokens.
        vocabulary: Of the model.
        lead: What its text is told without, where it begins with it.
        may_call: It may hold calls of functions, whose marks are part of its text.
        asked: What it answers, which may say how boxes stand in it.

    Attributes:
        stream: As given.
        num_tokens: Read so far.
    """

    def __init__(
        self,
        index: int,
        engine: Engine,
        stream: TokenStream,
        sampling: SamplingParams,
        vocabulary: Vocabulary,
        lead: str = "",
        *,
        may_call: bool = False,
        asked: str = "",
    ) -> None:
        self.stream = stream
        self._index = index
        self._engine = engine
        self._vocabulary = vocabulary
        self._asked = asked
        self._told_texts: list[str] = []
        self._end_ids = frozenset(stream.sequence.eos_token_ids)
        self._text = AnswerText(
            vocabulary.detokenizer(sampling.structure, may_call=may_call), vocabulary.eos_ids, sampling, lead
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, one that ended it included."""
        return self._text.num_tokens

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Yield its pieces, the last with the reason; the engine is told to stop however this ends.

        Raises:
            PocketVLMError: The engine could not go on.
        """
        reason: FinishReason = "stop"
        try:
            while not self._text.is_stopped:
                event = await self.stream.get()
                if isinstance(event, Failed):
                    raise event.error
                if not isinstance(event, Sampled):
                    reason = event.reason or reason
                    break
                yield self._piece(event)
        finally:
            self._engine.cancel(self.stream)
        rest = self._text.finish()
        reason = "stop" if self._text.is_stopped else reason
        ended = TokenEvent(rest, (), index=self._index, reason=reason, stopped_by=self._text.stopped_by)
        yield replace(ended, grounded=self._grounded(rest))

    def _piece(self, event: Sampled) -> TokenEvent:
        text = self._text.push(event.token_id)
        if self._vocabulary.grounding is not None:
            self._told_texts.append(text)
        return TokenEvent(text, (event.token_id,), event.sampled_s, self._index, self._told(event.choice))

    def _grounded(self, rest: str) -> Grounded | None:
        """Return the whole answer read for boxes; None where the model says none."""
        grounding = self._vocabulary.grounding
        return None if grounding is None else grounding.read("".join(self._told_texts) + rest, self._asked)

    def _told(self, choice: Choice) -> tuple[TokenLogprob, ...]:
        if choice.logprobs is None or choice.token_id in self._end_ids:
            return ()
        of = self._vocabulary.token_bytes.of
        top = tuple(TokenLogprob(of(token_id), logprob) for token_id, logprob in choice.logprobs.top)
        return (TokenLogprob(of(choice.token_id), choice.logprobs.of_chosen, top),)


async def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Yield what several generators yield, as it comes.

    The first failure is raised; however this ends, all of them are closed.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as items:
            async for item in items:
                yield item
        return
    queue: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(source, queue)) for source in sources]
    try:
        for _ in sources:
            while (found := await queue.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: AsyncGenerator[Item, None], queue: asyncio.Queue[Item | BaseException | None]) -> None:
    """Put what a generator yields into a queue, then None, or what it raises."""
    try:
        async with aclosing(source) as items:
            async for item in items:
                queue.put_nowait(item)
    except Exception as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
