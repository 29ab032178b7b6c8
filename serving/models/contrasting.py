"""Answers held against the same without their images: what such a request may be, and its other prompt's messages."""

from __future__ import annotations

from dataclasses import replace

from bundle.errors import ParameterError
from bundle.image.noise import NUM_STEPS
from bundle.manifest import Manifest
from serving.protocol import VCD, Contrast, GenerateRequest, KVCompression, Message, TextPart, VisionReduction


def contrast_of(request: GenerateRequest) -> Contrast | None:
    """Return what a request's answer is held against; None where that would change nothing."""
    how = request.sampling.contrast
    return None if how is None or how.changes_nothing else how


def check_contrast(
    request: GenerateRequest,
    manifest: Manifest,
    num_seats: int,
    vision: VisionReduction,
    compression: KVCompression | None,
) -> None:
    """Refuse a contrast that the model cannot make, or beside which something else is asked for.

    Args:
        request: That asks for one.
        manifest: Of the model.
        num_seats: Sequences that it runs at once.
        vision: What is done to its images, asked for or not.
        compression: What is done to its rows, likewise.

    Raises:
        ParameterError: The message says what, and what to do.
    """
    if reason := _refusal(request, manifest, num_seats, vision, compression):
        raise ParameterError(f"contrast: {reason}", "contrast")


def _refusal(
    request: GenerateRequest,
    manifest: Manifest,
    num_seats: int,
    vision: VisionReduction,
    compression: KVCompression | None,
) -> str:
    how = request.sampling.contrast
    if isinstance(how, VCD) and not 0 <= how.noise_step < NUM_STEPS:
        return f"noise_step is {how.noise_step}; it must be at least 0 and less than {NUM_STEPS}"
    if not any(not isinstance(part, TextPart) for message in request.messages for part in message.parts):
        return "the conversation shows no image to hold its answer against; leave contrast out"
    if num_seats < 2:
        return "it runs two sequences for one answer, and this server runs one at once; serve with --max-sequences 2"
    if kinds := {state.kind for state in manifest.states} - {"rows"}:
        named = ", ".join(sorted(kinds))
        return f"{manifest.name} has states of kind {named}; two answers cannot be tied there. Leave contrast out"
    if vision.keep < 1:
        return (
            f"{vision.method} chooses among image tokens, others of the two prompts; send vision with keep 1, or leave "
            "contrast out"
        )
    if compression is not None:
        return (
            f"{compression.policy} drops rows of the cache, others of the two prompts; send kv with budget 1, or leave "
            "contrast out"
        )
    if request.fuses or request.learns or request.behind is not None:
        return "fused prefixes and task vectors hold what images left, which cannot be taken out; use a plain prefix"
    return ""


def without_images(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation in which nothing is shown."""
    return tuple(replace(each, parts=_texts(each) or (TextPart(""),)) if each.parts else each for each in messages)


def _texts(message: Message) -> tuple[TextPart, ...]:
    return tuple(part for part in message.parts if isinstance(part, TextPart))
