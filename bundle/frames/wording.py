"""How frames are written into a prompt: bare images in order, or with SmolVLM's words around them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from bundle.frames.plan import FramePlan
from bundle.turn import Placeholder

Wording = Literal["plain", "smolvlm"]

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def frame_parts(
    wording: Wording, plan: FramePlan, times_s: Sequence[float], duration_s: float
) -> tuple[str | Placeholder, ...]:
    """Return a video's texts and images, as they stand among the parts of a message.

    SmolVLM's processor (transformers, `SmolVLMProcessor.replace_video_token`) says how many frames follow and when each
    was. Pictures that show several frames have no time, and stand bare in every wording.

    Args:
        wording: The checkpoint's.
        plan: Of the video.
        times_s: Of each frame that is looked at.
        duration_s: Of the video.
    """
    if wording == "plain" or not plan.tells_times:
        return (Placeholder.IMAGE,) * len(plan.places)
    length = timedelta(seconds=int(duration_s))
    count = in_words(len(plan.places))
    parts: list[str | Placeholder] = [
        f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
    ]
    for place in plan.places:
        time_s = int(times_s[place.frame or 0])
        parts += [f"\nFrame from {time_s // 60:02d}:{time_s % 60:02d}:", Placeholder.IMAGE]
    return (*parts, "\n\n")


def in_words(number: int) -> str:
    """Return a number from 0 to 999,999 in English words, as the library num2words writes it."""
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        joint = " and " if 0 < rest < 100 else ", "
        return f"{in_words(thousands)} thousand" + (joint + in_words(rest) if rest else "")
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{_UNITS[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    if number >= 20:
        tens, rest = divmod(number, 10)
        return _TENS[tens] + (f"-{_UNITS[rest]}" if rest else "")
    return _UNITS[number]
