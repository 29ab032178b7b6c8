"""What a conversation is made of: texts, images and videos in messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bundle.frames.options import FrameOptions
from bundle.image.geometry import Box
from bundle.tools import ToolCall


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An encoded image (PNG, JPEG, ...) in a message; decoded by the engine side, off the engine thread.

    Attributes:
        data: Its bytes.
        box: What of it is embedded: left, top, right, bottom, as shares of its width and height; None: all of it.
    """

    data: bytes
    box: Box | None = None


@dataclass(frozen=True)
class VideoPart:
    """An encoded video in a message, decoded by the engine side in a process of its own.

    Attributes:
        files: One file (GIF, WebP, MP4), or pictures in order, as `options.list_fps` says.
        options: Which frames are looked at, and how they are laid out.
    """

    files: tuple[bytes, ...]
    options: FrameOptions


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; the parts keep their order. The role "tool" tells a call's result.

    Attributes:
        role: Who speaks.
        parts: What is said and shown; none where the assistant only calls.
        calls: That the assistant makes.
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[TextPart | ImagePart | VideoPart, ...]
    calls: tuple[ToolCall, ...] = ()
