"""Task vectors of one model: made of demonstrations beside the engine, and given to requests that name one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bundle.errors import EngineDeadError, ParameterError
from bundle.image import TileLayout
from bundle.image_tokens import Features
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, PromptBuilder, Turn
from runtime.decoder import TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.fused_prefix import identity_of
from runtime.settings import Provider
from runtime.task_search import Demonstration, Found, behind_others, find_task_vector
from runtime.task_vector import HeadShape, TaskVector, is_task_vector
from serving.protocol import GenerateRequest

_FEWEST = 2
"""Each demonstration is read behind others, and has to have some."""


@dataclass(frozen=True)
class _Example:
    """A demonstration as it was sent.

    Attributes:
        question: What the user asks.
        answer: What the assistant says.
        layouts: Of the question's images and videos.
        features: Of the same.
    """

    question: Turn
    answer: Turn
    layouts: tuple[TileLayout, ...]
    features: tuple[Features, ...]


class Learning:
    """What one model does of task vectors.

    Args:
        manifest: Of its bundle.
        provider: Where it runs.
        graphs: Its graphs, which the search shares with the engine; it has a cache of its own.
        prompts: How it writes conversations.
        most_tokens: Of a prompt and an answer.
    """

    def __init__(
        self, manifest: Manifest, provider: Provider, graphs: TokenGraphs, prompts: PromptBuilder, most_tokens: int
    ) -> None:
        self._manifest = manifest
        self._provider = provider
        self._graphs = graphs
        self._prompts = prompts
        self._most_tokens = most_tokens
        self._one_at_a_time = asyncio.Lock()

    def check(self, request: GenerateRequest) -> None:
        """Check that a request may make a task vector, or be answered with one.

        Raises:
            ParameterError: The model's heads cannot be replaced, or the messages are no demonstrations.
        """
        is_answered_with_one = request.behind is not None and is_task_vector(request.behind)
        if not (request.learns or is_answered_with_one):
            return
        HeadShape.of(self._manifest)
        if self._manifest.question is not None:
            raise ParameterError(
                f"what {self._manifest.name} sees of an image depends on the last question, and each demonstration "
                'asks one of its own. Make the prefix with method "plain"',
                "prefix",
            )
        if self._provider != "cpu":
            raise ParameterError(
                f"{self._manifest.name} runs on {self._provider}, and heads are replaced on the CPU alone; serve with "
                "--provider cpu, or make the prefix with method plain",
                "prefix",
            )
        if request.learns:
            self._check_demonstrations(request)

    def _check_demonstrations(self, request: GenerateRequest) -> None:
        roles = [message.role for message in request.messages]
        pairs = roles[1:] if roles[:1] == ["system"] else roles
        if len(pairs) < 2 * _FEWEST or pairs != ["user", "assistant"] * (len(pairs) // 2):
            raise ParameterError(
                f"a task vector is made of at least {_FEWEST} demonstrations, messages of user and assistant in turn "
                f"(a system message may stand before them), not of {', '.join(roles)}",
                "messages",
            )
        if any(message.calls for message in request.messages):
            raise ParameterError("a task vector holds no calls of functions; leave them out", "messages")

    def demonstrations(
        self, turns: Sequence[Turn], layouts: Sequence[TileLayout], features: Sequence[Features], adapter: int = 0
    ) -> list[Demonstration]:
        """Return a conversation as demonstrations that are read behind one another, and answered alone.

        Args:
            turns: The conversation.
            layouts: Of its images.
            features: Of the same.
            adapter: Number of the one that all run through.

        Raises:
            PromptError: One forms no prompt.
            ContextLengthError: One is longer than the context.
        """
        lead = [turn for turn in turns[:1] if turn.role == "system"]
        examples = list(_examples(turns[len(lead) :], layouts, features))
        found = []
        for number, each in enumerate(examples):
            others = [examples[other] for other in behind_others(number, len(examples))]
            shown, alone = (replace(self._prompt(lead, behind, each), adapter=adapter) for behind in (others, []))
            answer = "".join(part for part in each.answer.parts if isinstance(part, str))
            answer_ids = [*self._prompts.answer_ids(answer), *self._manifest.eos_token_ids[:1]]
            found.append(Demonstration(shown, alone, answer_ids))
        self._check_length(found)
        return found

    def _prompt(self, lead: Sequence[Turn], before: Sequence[_Example], asked: _Example) -> FilledPrompt:
        turns = [*lead, *(turn for each in before for turn in (each.question, each.answer)), asked.question]
        shown = [*before, asked]
        layouts = [layout for each in shown for layout in each.layouts]
        prompt = self._prompts.build(turns, layouts, max_tokens=self._most_tokens)
        return FilledPrompt.of(prompt, [features for each in shown for features in each.features])

    def _check_length(self, demonstrations: Sequence[Demonstration]) -> None:
        longest = max(each.num_rows for each in demonstrations)
        if longest > self._most_tokens:
            raise ParameterError(
                f"a demonstration behind others takes {longest} tokens; the context holds {self._most_tokens}. Send "
                "shorter ones or smaller images.",
                "messages",
            )

    async def find(self, demonstrations: Sequence[Demonstration], adapter: str = "") -> tuple[TaskVector, Found]:
        """Return the task vector of demonstrations; one search runs at a time, and ends soon after its caller does.

        Args:
            demonstrations: All through one adapter, or none.
            adapter: Its name.

        Raises:
            ParameterError: They teach the model nothing.
        """
        is_unwanted = threading.Event()

        def check() -> None:
            if is_unwanted.is_set():
                raise EngineDeadError("nobody waits for this task vector any more")

        async with self._one_at_a_time:
            try:
                found = await asyncio.to_thread(find_task_vector, self._graphs, self._manifest, demonstrations, check)
            finally:
                is_unwanted.set()
        return TaskVector(identity_of(self._manifest, adapter), found.heads), found


def _examples(turns: Sequence[Turn], layouts: Sequence[TileLayout], features: Sequence[Features]) -> Iterator[_Example]:
    start = 0
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        end = start + sum(isinstance(part, Placeholder) for part in question.parts)
        yield _Example(question, answer, tuple(layouts[start:end]), tuple(features[start:end]))
        start = end
