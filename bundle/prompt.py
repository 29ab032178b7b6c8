"""Messages to the token ids of a prompt: chat template, image placeholders, tokenizer.

For ordinary text the ids equal what transformers' processor makes of the same conversation: the template is rendered
with every text in place, image placeholders are expanded, and the one string is tokenized.

Text from a caller must not write control tokens ("<image>", "<|im_end|>"). The string is therefore held against the
same conversation with its texts blanked: both must hold the same control tokens, and so must the ids. Where they do
not, the conversation is rendered again with unguessable marks around each text, cut at the marks, and the callers'
pieces are encoded by the vocabulary alone, in which no text is a control token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.callers_text import blanked, control_tokens, marked
from bundle.chat_template import CHAT_TEMPLATE, INPUT_TEMPLATE, PROBED_ROLES, ChatTemplate
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ContextLengthError, ParameterError, PromptError
from bundle.image import TileLayout
from bundle.layouts.prompt import ImagePrompt, Memory
from bundle.layouts.prompt import Span as Span
from bundle.placeholders import Placeholders
from bundle.template_sandbox import MOST_SOURCE_CHARACTERS
from bundle.text import TOKENIZER, Tokenizer
from bundle.tools import Tool, call_value, tool_value
from bundle.turn import Placeholder as Placeholder
from bundle.turn import Turn as Turn
from bundle.turn import in_words

_MOST_BYTES_A_CHARACTER = 4
_PROBED_TEXT = "x"
_BETWEEN_PARTS = "\n"
"""Joins the parts of a message for a template that reads one string, as vLLM does and LLaVA was trained."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as the decoder takes it.

    Attributes:
        token_ids: [T] int64, ids of the image token where image features go.
        spans: Where those are, in order.
        positions: [T] int64, the logical position of each token; [3, T] where a model turns by three axes.
        next_position: Of the first token after the prompt.
        num_images: Images in the conversation.
        seen: [2, T] int64, the half-open stretch around it or behind it that each token sees whatever windows layers
            have; None: itself alone. It sees itself and what stands before it as well, as far as windows allow.
        memory: What a decoder's cross-attention reads of them; None: their features take the places of their tokens.
    """

    token_ids: npt.NDArray[np.int64]
    spans: tuple[Span, ...]
    positions: npt.NDArray[np.int64]
    next_position: int
    num_images: int
    seen: npt.NDArray[np.int64] | None = None
    memory: Memory | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def num_image_tokens(self) -> int:
        """Rows of `image_features` that the prompt wants."""
        return sum(span.end - span.start for span in self.spans)


class PromptBuilder:
    """Turns conversations into prompts for one model; safe to share between threads.

    Args:
        tokenizer: The model's.
        template: Text of its chat template.
        image_prompt: How it writes images.
        template_tokens: Special tokens by the name the template uses.

    Raises:
        BundleFormatError: The template is not Jinja, or the image token is not the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        image_prompt: ImagePrompt,
        template_tokens: Mapping[str, str],
    ) -> None:
        self._placeholders = Placeholders(tokenizer, image_prompt)
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, template_tokens)
        self._image_prompt = image_prompt
        self._bos_token = template_tokens.get("bos_token")
        self._control_ids = control_tokens(tokenizer, template, image_prompt)
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)))

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, of_inputs: bool = False) -> PromptBuilder:
        """Return the builder of an opened vision-language bundle.

        Args:
            bundle: The bundle.
            of_inputs: Write what is embedded, where that is not as chats are.

        Raises:
            BundleFormatError: The bundle is not one, or its tokenizer or template is unusable.
            BundleFileError: The manifest lists no tokenizer or no template.
        """
        manifest = bundle.manifest
        if manifest.image_prompt is None:
            raise BundleFormatError(
                f"{bundle.directory} is a {manifest.task} bundle; it has no prompt layout and takes no chat"
            )
        path = bundle.path(INPUT_TEMPLATE if of_inputs and INPUT_TEMPLATE in manifest.files else CHAT_TEMPLATE)
        try:
            template = _read_template(path)
        except (OSError, ValueError) as error:
            raise BundleFormatError(f"{path} cannot be read: {error}. Export the checkpoint again.") from error
        tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
        return cls(tokenizer, template, manifest.image_prompt, manifest.template_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def image_prompt(self) -> ImagePrompt:
        """How the model writes images."""
        return self._image_prompt

    def require_images(self) -> None:
        """Check that the template places an image; a bundle is written only of a checkpoint where it does.

        Raises:
            BundleFormatError: One image of a conversation does not become one image token.
        """
        token = self._image_prompt.image_token
        found: list[str] = []
        for roles in PROBED_ROLES:
            turns = [*(Turn(role, ("x",)) for role in roles[:-1]), Turn(roles[-1], (Placeholder.IMAGE, "x"))]
            try:
                count = self._render(turns, str, True).count(token)
            except PromptError as error:
                found.append(error.message)
                continue
            if count == 1:
                return
            found.append(f"the chat template writes {count} {token} for one image")
        raise BundleFormatError(
            f"{found[0]}. Use a template that reads lists of parts and writes {token} for each image."
        )

    def build(
        self,
        turns: Sequence[Turn],
        layouts: Sequence[TileLayout],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        max_tokens: int | None = None,
        num_dropped: int = 0,
    ) -> Prompt:
        """Return the prompt of a conversation.

        Args:
            turns: At least one, each with at least one part or call.
            layouts: How each image was cut, in the order of the images.
            tools: Functions that the model may call.
            add_generation_prompt: End with what opens the assistant's answer.
            max_tokens: What makes more of them is refused before it is tokenized, in memory of 200 bytes a character.
            num_dropped: Image tokens that will be left out of the prompt, and count for nothing.

        Raises:
            PromptError: No turns, an empty turn, another number of layouts than images, functions for a model that
                takes one message, a conversation that the template refuses, or texts that join into a control token.
            ContextLengthError: More images than the model takes; or images alone, or the characters that the template
                makes, are more than `max_tokens`.
        """
        _check(turns, layouts)
        if tools and self._image_prompt.takes_one_message:
            raise PromptError("the model answers one message and calls no functions; leave tools out", "tools")
        self._image_prompt.check(layouts)
        num_image_tokens = sum(map(self._image_prompt.num_tokens, layouts)) - num_dropped
        if max_tokens is not None and num_image_tokens > max_tokens:
            raise ContextLengthError(
                f"the {len(layouts)} images take {num_image_tokens} tokens; the context holds {max_tokens}. Send fewer "
                "or smaller images, or let the server hold a longer context.",
                "messages",
            )
        if not self._template.has_tools:
            turns, tools = in_words(turns, tools), ()
        rendered = self._render(turns, str, add_generation_prompt, tools)
        if max_tokens is not None:
            self._tokenizer.check_characters(len(rendered), max_tokens)
        ids = self._one_string(turns, rendered, layouts, add_generation_prompt, tools)
        if ids is None:
            ids = self._pieces(turns, layouts, add_generation_prompt, tools)
        token_ids = np.array(ids, np.int64)
        return self._prompt(token_ids, self._placeholders.spans(token_ids, layouts), layouts)

    def of_text(self, text: str, *, max_tokens: int, adds_special_tokens: bool = True) -> Prompt:
        """Return a text as a prompt of its own, in which nothing is a control token.

        Raises:
            PromptError: It gives no token.
            ContextLengthError: It is longer than `max_tokens` whatever it says; it was not tokenized.
        """
        self._image_prompt.check(())
        self._tokenizer.check_characters(len(text), max_tokens)
        ids = self._tokenizer.encode_plain(text)
        ids = self._tokenizer.with_special_tokens(ids) if adds_special_tokens else ids
        if not ids:
            raise PromptError("prompt is empty; send a text to go on with", "prompt")
        return self._prompt(np.array(ids, np.int64), (), ())

    def of_ids(self, token_ids: Sequence[int]) -> Prompt:
        """Return ids as a prompt of their own.

        Raises:
            ParameterError: The vocabulary lacks one, or one stands for an image.
        """
        self._image_prompt.check(())
        for token_id in token_ids:
            if not self._tokenizer.piece(token_id):
                last = self._tokenizer.vocab_size - 1
                raise ParameterError(f"token {token_id} is none of the model's, which are 0 to {last}")
            if token_id in self._placeholders.ids.values():
                raise ParameterError(
                    f"token {token_id} stands for an image; send the image, and text in the place of ids"
                )
        return self._prompt(np.array(token_ids, np.int64), (), ())

    def _prompt(
        self, token_ids: npt.NDArray[np.int64], spans: tuple[Span, ...], layouts: Sequence[TileLayout]
    ) -> Prompt:
        places = self._image_prompt.places(len(token_ids), spans, layouts)
        seen = self._image_prompt.seen(token_ids, spans)
        memory = self._image_prompt.memory(len(token_ids), spans, layouts)
        return Prompt(token_ids, spans, places.positions, places.next_position, len(layouts), seen=seen, memory=memory)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer as they follow a prompt: many templates put a blank before it.

        That is what a model was trained to say, and what it says; the token that ends it is left out.
        """
        prompt, blanks = self._before_answers
        before, whole = self._tokenizer.encode(prompt), self._tokenizer.encode(prompt + blanks + answer)
        # Behind a prompt, as a vocabulary that begins every text with a blank has no second one there
        return whole[len(before) :] if whole[: len(before)] == before else self._tokenizer.encode(blanks + answer)

    @property
    def answer_lead(self) -> str:
        """The blanks with which answers begin, because the template writes them behind the prompt; often none."""
        return self._before_answers[1]

    @cached_property
    def _before_answers(self) -> tuple[str, str]:
        """A prompt, and the blanks that the template writes between it and an answer."""
        asked = [Turn("user", (_PROBED_TEXT,))]
        try:
            prompt = self._render(asked, str, True)
            whole = self._render([*asked, Turn("assistant", (_PROBED_TEXT,))], str, False)
        except PromptError:
            return "", ""
        between = whole.removeprefix(prompt).partition(_PROBED_TEXT)[0] if whole.startswith(prompt) else ""
        return prompt, between if between.isspace() else ""

    def _one_string(
        self,
        turns: Sequence[Turn],
        rendered: str,
        layouts: Sequence[TileLayout],
        add_generation_prompt: bool,
        tools: Sequence[Tool],
    ) -> list[int] | None:
        """Return the ids of the conversation as one string; None where a text wrote a control token."""
        harmless = self._render(turns, blanked, add_generation_prompt, tools)
        if self._controls(rendered) != self._controls(harmless):
            return None
        text = self._placeholders.expander(layouts)(rendered)
        ids = self._tokenizer.encode(text)
        wanted = [self._control_ids[token] for token in self._controls(text)]
        # The unknown token may come of any text, and says nothing
        telling = set(self._control_ids.values()) - {self._tokenizer.unknown_id}
        if [token for token in ids if token in telling] != [token for token in wanted if token in telling]:
            return None
        return self._with_special_tokens(ids, text)

    def _pieces(
        self, turns: Sequence[Turn], layouts: Sequence[TileLayout], add_generation_prompt: bool, tools: Sequence[Tool]
    ) -> list[int]:
        """Return the ids of the conversation with every text encoded by itself, as nothing but text."""
        # Digits alone between the ends, so that a template's upper, lower or title leaves the marks as they are
        start, end = f"\ue000{secrets.randbits(128)}\ue001", f"\ue002{secrets.randbits(128)}\ue003"
        rendered = self._render(turns, lambda text: marked(text, start, end), add_generation_prompt, tools)
        first, *rest = rendered.split(start)
        pairs = [piece.split(end) for piece in rest]
        harmless = self._render(turns, blanked, add_generation_prompt, tools)
        outside = "\0".join([first, *(pair[-1] for pair in pairs)])
        if any(len(pair) != 2 for pair in pairs) or self._controls(outside) != self._controls(harmless):
            raise PromptError(
                "a text of these messages would write the model's control tokens; rephrase it", "messages"
            )
        expanded = self._placeholders.expander(layouts)
        ids = self._tokenizer.encode(expanded(first))
        for from_caller, from_template in pairs:
            ids += self._tokenizer.encode_plain(from_caller)
            ids += self._tokenizer.encode(expanded(from_template))
        return self._with_special_tokens(ids, first)

    def _controls(self, text: str) -> list[str]:
        """Return the control tokens written in a text, in order."""
        return self._control_pattern.findall(text)

    def _render(
        self,
        turns: Sequence[Turn],
        of_text: Callable[[str], str],
        add_generation_prompt: bool,
        tools: Sequence[Tool] = (),
    ) -> str:
        messages = [self._message(turn, of_text) for turn in turns]
        told = [tool_value(tool, of_text) for tool in tools]
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, tools=told)

    def _message(self, turn: Turn, of_text: Callable[[str], str]) -> dict[str, Any]:
        """Return a turn as the template reads it."""
        message: dict[str, Any] = {"role": turn.role, "content": self._content(turn, of_text)}
        return {**message, "tool_calls": [call_value(each, of_text) for each in turn.calls]} if turn.calls else message

    def _content(self, turn: Turn, of_text: Callable[[str], str]) -> list[dict[str, str]] | str:
        """Return a message's content as the template reads it."""
        if self._template.content[turn.role] == "parts":
            return [_part(part, of_text) for part in turn.parts]
        shown = [part for part in turn.parts if isinstance(part, Placeholder)]
        if Placeholder.VIDEO in shown or (shown and not self._image_prompt.places_images_in_strings):
            raise PromptError(
                "the model's chat template reads a message as one string, and nothing says where in it a model of kind "
                f"{self._image_prompt.kind} wants an image; send text alone",
                "messages",
            )
        token = self._image_prompt.image_token
        return _BETWEEN_PARTS.join(token if isinstance(part, Placeholder) else of_text(part) for part in turn.parts)

    def _behind_images(self, text: str) -> str:
        """Return the text without the image tokens that it begins with: BLIP-2 has images before the BOS."""
        token = self._image_prompt.image_token
        while text.startswith(token):
            text = text[len(token) :]
        return text

    def _with_special_tokens(self, ids: list[int], text: str) -> list[int]:
        """Return ids with the tokenizer's own BOS and EOS, unless the template wrote the BOS itself."""
        if self._image_prompt.writes_whole_prompts:
            return ids
        if self._bos_token is not None and self._behind_images(text).startswith(self._bos_token):
            return ids
        return self._tokenizer.with_special_tokens(ids)


def _read_template(path: Path) -> str:
    if (size_bytes := path.stat().st_size) > MOST_SOURCE_CHARACTERS * _MOST_BYTES_A_CHARACTER:
        raise ValueError(f"it holds {size_bytes} bytes; at most {MOST_SOURCE_CHARACTERS} characters are read")
    return path.read_text(encoding="utf-8")


def _check(turns: Sequence[Turn], layouts: Sequence[TileLayout]) -> None:
    if not turns:
        raise PromptError("messages is empty; send at least one message", "messages")
    for at, turn in enumerate(turns):
        if not (turn.parts or turn.calls):
            raise PromptError(f"messages[{at}] has no content; send text or an image", f"messages.{at}.content")
    num_images = sum(isinstance(part, Placeholder) for turn in turns for part in turn.parts)
    if num_images != len(layouts):
        raise PromptError(f"the messages hold {num_images} images, but {len(layouts)} were preprocessed")


def _part(part: str | Placeholder, of_text: Callable[[str], str]) -> dict[str, str]:
    return {"type": part.value} if isinstance(part, Placeholder) else {"type": "text", "text": of_text(part)}
