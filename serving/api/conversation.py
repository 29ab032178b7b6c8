"""A conversation as OpenAI's clients write it, to messages of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from bundle.frames.options import FrameOptions
from serving.api.contents import FramesContent, ImageContent, TextContent, VideoContent
from serving.api.history import OpenCalls, call_of
from serving.api.schemas import AssistantMessage, ChatMessage, ToolMessage
from serving.api.service import Service, check_count
from serving.api.videos import num_frames_of, video_part
from serving.protocol import ImagePart, Message, TextPart, ToolCall, VideoPart

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


def conversation_of(service: Service, given: Sequence[ChatMessage], options: FrameOptions) -> tuple[Message, ...]:
    """Return a conversation as the engine takes it, its images and videos decoded from base64.

    Args:
        service: Its limits hold.
        given: As a client wrote it.
        options: How videos are looked at.

    Raises:
        RequestError: A limit is passed, an image is none, or a call and its result do not go together.
    """
    num_parts = sum(len(message.content) for message in given if isinstance(message.content, list))
    check_count(num_parts, service.settings.max_parts, "messages", "parts")
    messages, open_calls = list[Message](), OpenCalls()
    for index, message in enumerate(given):
        param = f"messages.{index}"
        parts = _parts(service, message, options, f"{param}.content")
        if isinstance(message, ToolMessage):
            open_calls.close(message.tool_call_id, f"{param}.tool_call_id")
            messages.append(Message("tool", parts))
            continue
        open_calls.check_none(param)
        calls = _calls(message, f"{param}.tool_calls")
        open_calls.add(calls, f"{param}.tool_calls")
        messages.append(Message(_ROLES[message.role], () if calls and not message.content else parts, calls))
    open_calls.check_none("messages")
    check_counts(service, [part for message in messages for part in message.parts])
    return tuple(messages)


def check_counts(service: Service, parts: Sequence[object]) -> None:
    """Refuse more images, videos or frames than one request may hold.

    Raises:
        ParameterError: There are more.
    """
    check_count(sum(isinstance(part, ImagePart) for part in parts), service.settings.max_images, "messages", "images")
    videos = [part for part in parts if isinstance(part, VideoPart)]
    check_count(len(videos), service.settings.max_videos, "messages", "videos")
    check_count(sum(map(num_frames_of, videos)), service.settings.max_frames, "messages", "frames")


def _calls(message: ChatMessage, param: str) -> tuple[ToolCall, ...]:
    fields = (message.tool_calls if isinstance(message, AssistantMessage) else None) or ()
    return tuple(call_of(field, f"{param}.{place}") for place, field in enumerate(fields))


def _parts(service: Service, message: ChatMessage, options: FrameOptions, param: str) -> tuple[Any, ...]:
    if message.content is None or isinstance(message.content, str):
        return (TextPart(message.content or ""),)
    return tuple(_part(service, each, options, f"{param}.{index}") for index, each in enumerate(message.content))


def _part(
    service: Service,
    content: TextContent | ImageContent | VideoContent | FramesContent,
    options: FrameOptions,
    param: str,
) -> TextPart | ImagePart | VideoPart:
    if isinstance(content, (VideoContent, FramesContent)):
        return video_part(content, options, service.settings, param)
    return service.part(content, param)
