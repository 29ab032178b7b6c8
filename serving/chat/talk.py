"""A conversation in the terminal: what was said, what goes with the next question, and how answers are made."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bundle.decode import inspect_image
from bundle.errors import ParameterError

Number = Callable[[str], float | int]


@dataclass(frozen=True)
class Picture:
    """A picture that goes with a question.

    Attributes:
        name: As the user wrote it.
        data: Its file.
        told: Its kind and size, for the user.
    """

    name: str
    data: bytes
    told: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Picture:
        """Return a picture that can be shown to a model.

        Raises:
            ImageError: It is none, or too large.
        """
        head = inspect_image(data)
        return cls(name, data, f"{head.format}, {head.width_px} x {head.height_px} px")

    @property
    def url(self) -> str:
        """A data URL; the server goes by the bytes, not by the media type."""
        return f"data:image/{_format(self.data)};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Turn:
    """A question with its pictures, and what was answered; empty where it was not yet."""

    question: str
    pictures: tuple[Picture, ...]
    answer: str = ""


@dataclass(frozen=True)
class Choices:
    """How answers are made; None leaves it to the model or its server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    vision_method: str | None = None
    vision_keep: float | None = None
    kv_policy: str | None = None
    kv_budget: float | None = None

    def with_text(self, name: str, text: str) -> Choices:
        """Return the choices with one that the user typed; `default` takes it back.

        Raises:
            ParameterError: There is none of that name, or the text is no value of it.
        """
        if name not in SETTINGS:
            raise ParameterError(f"{name!r} cannot be set; what can be: {', '.join(SETTINGS)}")
        if text == "default":
            return replace(self, **{name: None})
        read, told = SETTINGS[name]
        try:
            value = read(text)
        except ValueError as error:
            raise ParameterError(f"{name} must be {told}, not {text!r}; or default") from error
        return replace(self, **{name: value})

    def told(self) -> str:
        """Return what was chosen, in a line."""
        chosen = [f"{name} {value}" for name, value in asdict(self).items() if value is not None]
        return ", ".join(chosen) or "all by the model's own defaults"

    @property
    def vision(self) -> tuple[str, float] | None:
        """The method and the share of image tokens that are read; None where nothing was chosen."""
        return None if self.vision_keep is None else (self.vision_method or "uniform", self.vision_keep)

    @property
    def kv(self) -> tuple[str, float] | None:
        """The policy and the share of the prompt's rows that stay; None where nothing was chosen."""
        return None if self.kv_budget is None else (self.kv_policy or "snapkv", self.kv_budget)


def _number(kind: type[int] | type[float], least: float, most: float, is_least_taken: bool = True) -> Number:
    def read(text: str) -> float | int:
        value = kind(text)
        if not least <= value <= most or (value == least and not is_least_taken):
            raise ValueError(text)
        return value

    return read


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (_number(float, 0, 2), "a number from 0 to 2"),
    "max_tokens": (_number(int, 1, 1 << 20), "a whole number above 0"),
    "top_p": (_number(float, 0, 1, is_least_taken=False), "a number above 0, at most 1"),
    "top_k": (_number(int, 0, 1 << 30), "a whole number; 0 is all"),
    "seed": (_number(int, 0, (1 << 63) - 1), "a whole number"),
    "vision_keep": (_number(float, 0, 1, is_least_taken=False), "a share above 0, at most 1"),
    "vision_method": (_name, "a method's name (docs/compression.md)"),
    "kv_budget": (_number(float, 0, 1, is_least_taken=False), "a share above 0, at most 1"),
    "kv_policy": (_name, "a policy's name (docs/compression.md)"),
}
"""What `/set` takes: how its text is read, and what it has to be."""


@dataclass
class Talk:
    """What a session holds.

    Attributes:
        system: What the model is told before everything else; empty: nothing.
        turns: Answered, in order.
        pictures: That go with the next question.
        choices: How answers are made.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    choices: Choices = Choices()

    def clear(self) -> None:
        """Forget what was said and shown; the system's words and the choices stay."""
        self.turns.clear()
        self.pictures.clear()

    @property
    def has_pictures(self) -> bool:
        """Whether the conversation up to now shows any."""
        return bool(self.pictures) or any(turn.pictures for turn in self.turns)

    def messages(self, question: str) -> list[dict[str, Any]]:
        """Return the conversation with a new question, in OpenAI's form; pictures come before the words."""
        return [*self.said(), {"role": "user", "content": _content(Turn(question, tuple(self.pictures)))}]

    def said(self) -> list[dict[str, Any]]:
        """Return the conversation up to now, in OpenAI's form."""
        told: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            told.append({"role": "user", "content": _content(turn)})
            told.append({"role": "assistant", "content": turn.answer})
        return told


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.pictures:
        return turn.question
    shown = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in turn.pictures]
    return [*shown, {"type": "text", "text": turn.question}] if turn.question else shown


def _format(data: bytes) -> str:
    return inspect_image(data).format.lower()
