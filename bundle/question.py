"""The question that images are shown with, for vision encoders that read it beside the pixels (InstructBLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from bundle.dims import QuestionDims
from bundle.directory import Bundle
from bundle.errors import ContextLengthError, PromptError
from bundle.text import Tokenizer
from bundle.turn import Turn

QUESTION_TOKENIZER = "question_tokenizer.json"
"""Of an encoder whose words are not the decoder's."""

_INPUT = "{input}"
QuestionIds: TypeAlias = tuple[int, ...]
Asked: TypeAlias = tuple[float, ...]
"""What an encoder reads beside an image: the ids of a question, the four numbers of each of several boxes, or an
adapter's number."""


def question_of(turns: Sequence[Turn]) -> str:
    """Return what a conversation asks of its images: the text of its last user's message (docs/decisions/0047)."""
    for turn in reversed(turns):
        if turn.role == "user":
            return "".join(part for part in turn.parts if isinstance(part, str))
    return ""


class QuestionReader:
    """Cuts questions into the tokens of a vision encoder; safe to share between threads.

    Args:
        tokenizer: Whose ids the encoder reads.
        dims: What it takes of them.
    """

    def __init__(self, tokenizer: Tokenizer, dims: QuestionDims) -> None:
        self._tokenizer = tokenizer
        self._dims = dims

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> QuestionReader | None:
        """Return the reader of a bundle; None where its vision encoder sees images alone.

        Raises:
            BundleError: The tokenizer is missing or unusable.
        """
        dims = bundle.manifest.question
        return None if dims is None else cls(Tokenizer.from_file(bundle.path(dims.tokenizer)), dims)

    def ids(self, turns: Sequence[Turn]) -> QuestionIds:
        """Return the question of a conversation as the encoder reads it; a control token in it is plain text.

        Raises:
            ContextLengthError: It is longer than the encoder's positions.
            PromptError: It cannot be written without control tokens, or names a task that takes nothing beside it.
        """
        text, most = self._worded(question_of(turns)), self._dims.max_tokens
        self._tokenizer.check_characters(len(text), most, "the question, which an encoder reads beside the image,")
        if self._dims.before:
            ids = self._tokenizer.encode_harmless(self._dims.prefix + text)
        else:
            ids = self._tokenizer.encode_callers(self._dims.prefix + text)
        if len(ids) > most:
            raise ContextLengthError(
                f"the question takes {len(ids)} tokens; the encoder that reads it beside the image holds {most}. "
                "Shorten the last message.",
                "messages",
            )
        return (*self._dims.before, *ids)

    def _worded(self, text: str) -> str:
        """Return a question as the model was trained on it, where it names a task."""
        for name, words in self._dims.tasks.items():
            if name not in text:
                continue
            if _INPUT in words:
                return words.replace(_INPUT, text.replace(name, "").strip())
            if text.strip() != name:
                raise PromptError(
                    f"{name} asks {words!r}, and nothing stands beside it; send it alone, or another task", "messages"
                )
            return words
        return text
