"""Inputs of a model that embeds by a decoder, as prompts: written, measured, and cut where a request asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from bundle.errors import ContextLengthError, ParameterError
from bundle.image import TileLayout
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, Prompt, PromptBuilder, Turn
from runtime.settings import DEFAULT_CONTEXT_TOKENS
from serving.models.text_rows import ALL
from serving.protocol import ImagePart, TextPart
from serving.settings import EngineSettings

_MOST_CUTS = 8
"""A text that was cut may take a token more than its tokens were; what does not fit then never will."""


def longest_input(manifest: Manifest, settings: EngineSettings) -> int | None:
    """Return how many tokens one input may take; None of a model that embeds by encoders."""
    if manifest.embedder is None:
        return None
    return min(manifest.embedder.max_positions, settings.context_tokens or DEFAULT_CONTEXT_TOKENS)


class InputWriter:
    """Writes inputs as a model's template has them; safe to share between threads.

    Args:
        prompts: Of the model.
        longest: Tokens of one input.
    """

    def __init__(self, prompts: PromptBuilder, longest: int) -> None:
        self._prompts, self._longest = prompts, longest

    def most_tokens(self, asked: int | None) -> int | None:
        """Return to how many tokens longer inputs are cut; None: they are refused.

        Raises:
            ParameterError: More than the model reads.
        """
        if asked is not None and asked > self._longest:
            raise ParameterError(
                f"truncate_prompt_tokens = {asked}: the model reads {self._longest} tokens at most; -1 is that",
                "truncate_prompt_tokens",
            )
        return self._longest if asked == ALL else asked

    def of_ids(self, token_ids: Sequence[int], most_tokens: int | None) -> Prompt:
        """Return ids as they are, or cut as their text would be: what the template writes behind it stays.

        Raises:
            RequestError: They are too many and not cut, not the model's, or nothing says where they may be cut.
        """
        kept = token_ids
        if most_tokens is not None and len(token_ids) > most_tokens:
            kept = self._shorter(token_ids, most_tokens)
        self._check_length(len(kept))
        return self._prompts.of_ids(kept)

    def _shorter(self, token_ids: Sequence[int], most_tokens: int) -> list[int]:
        """Return so many of a prompt's ids: those before its end go, as models that pool by `last` look at the end."""
        num_before, behind = self._around
        if most_tokens < num_before + len(behind):
            raise ContextLengthError(
                f"{most_tokens} tokens are allowed, and the model's template alone takes {num_before + len(behind)}. "
                "Allow more"
            )
        if list(token_ids[len(token_ids) - len(behind) :]) != behind:
            raise ParameterError(
                f"truncate_prompt_tokens = {most_tokens}: these {len(token_ids)} ids do not end as the model's "
                f"template ends a text, with {behind}, so that nothing says where they may be cut. Send those that "
                "/tokenize answers, or the text",
                "truncate_prompt_tokens",
            )
        return [*token_ids[: most_tokens - len(behind)], *behind]

    @cached_property
    def _around(self) -> tuple[int, list[int]]:
        """How many tokens the template writes before a text, and which behind it: what prompts of two texts share."""
        first, second = (self._prompts.build([Turn("user", (text,))], ()).token_ids.tolist() for text in "ab")
        num_before = _num_alike(first, second)
        return num_before, first[len(first) - _num_alike(first[:num_before:-1], second[:num_before:-1]) :]

    def write(
        self,
        parts: Sequence[TextPart | ImagePart],
        layouts: Sequence[TileLayout],
        prefix: str,
        instruction: str | None,
        most_tokens: int | None,
    ) -> Prompt:
        """Return one input's prompt.

        Args:
            parts: Texts and images, in order.
            layouts: Of the images.
            prefix: Of its first text.
            instruction: For the template's place of it.
            most_tokens: The last text is cut until no more are left; None: nothing is cut.

        Raises:
            RequestError: It is too long and not cut, or what is left beside the text is too long.
        """
        said = _said(parts)
        at = next((place for place, part in enumerate(said) if isinstance(part, str)), None)
        if at is not None:
            said[at] = f"{prefix}{said[at]}"
        return self._written(_told(instruction), said, layouts, most_tokens)

    def write_pair(
        self,
        query: Sequence[TextPart | ImagePart],
        document: Sequence[TextPart | ImagePart],
        layouts: Sequence[TileLayout],
        instruction: str | None,
        most_tokens: int | None,
    ) -> Prompt:
        """Return the prompt of two inputs that are read together.

        Args:
            query: Texts and images, in order.
            document: The same; of it a text is cut.
            layouts: Of the images of both.
            instruction: As of `write`.
            most_tokens: As of `write`.

        Raises:
            RequestError: As of `write`.
        """
        turns = [*_told(instruction), Turn("user", tuple(_said(query)))]
        return self._written(turns, _said(document), layouts, most_tokens)

    def _written(
        self,
        turns: Sequence[Turn],
        said: list[str | Placeholder],
        layouts: Sequence[TileLayout],
        most_tokens: int | None,
    ) -> Prompt:
        """Return the prompt of turns and one more, cut where that is asked for."""
        if most_tokens is None:
            prompt = self._prompts.build([*turns, Turn("user", tuple(said))], layouts, max_tokens=self._longest)
            self._check_length(prompt.num_tokens)
            return prompt
        return self._cut(turns, said, layouts, most_tokens)

    def _cut(
        self, turns: Sequence[Turn], said: list[str | Placeholder], layouts: Sequence[TileLayout], most_tokens: int
    ) -> Prompt:
        """Return a prompt of at most so many tokens: its last text loses what does not fit."""
        tokenizer = self._prompts.tokenizer
        said = [tokenizer.shortened(part, most_tokens) if isinstance(part, str) else part for part in said]
        last = max((place for place, part in enumerate(said) if isinstance(part, str)), default=None)
        for _ in range(_MOST_CUTS):
            prompt = self._prompts.build([*turns, Turn("user", tuple(said))], layouts)
            over = prompt.num_tokens - most_tokens
            text = "" if last is None else said[last]
            if over <= 0:
                return prompt
            if last is None or not isinstance(text, str) or not text:
                break
            ids = tokenizer.encode_plain(text)
            said[last] = tokenizer.decode(ids[: max(len(ids) - over, 0)])
        raise ContextLengthError(
            f"{prompt.num_tokens - over} tokens are allowed, and the input takes {prompt.num_tokens} however short its "
            "text is: the model's template and images take the rest. Allow more, or send fewer images"
        )

    def _check_length(self, num_tokens: int) -> None:
        if not 0 < num_tokens <= self._longest:
            raise ContextLengthError(f"the input takes {num_tokens} tokens; 1 to {self._longest} are read. Shorten it.")


def _num_alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Return with how many of the same ids both begin."""
    pairs = list(zip(first, second, strict=False))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _said(parts: Sequence[TextPart | ImagePart]) -> list[str | Placeholder]:
    return [part.text if isinstance(part, TextPart) else Placeholder.IMAGE for part in parts]


def _told(instruction: str | None) -> list[Turn]:
    return [] if instruction is None else [Turn("system", (instruction,))]
