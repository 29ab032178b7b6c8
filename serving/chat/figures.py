"""What an answer took, in one line."""

from __future__ import annotations

from serving.protocol import Timings, Usage

_FEWEST_TIMED = 4
"""A rate of fewer tokens says more of the clock than of the model."""


def speed(usage: Usage, timings: Timings) -> str:
    """Return an answer's counts and speed in one line."""
    decode_s = timings.total_s - timings.first_token_s
    rate = (
        f", {(usage.completion_tokens - 1) / decode_s:.0f} tokens/s"
        if usage.completion_tokens >= _FEWEST_TIMED and decode_s > 0
        else ""
    )
    shown, read = usage.image_tokens, usage.kept_image_tokens
    images = f"{shown} of images" if read == shown else f"{read} of images that have {shown}"
    before, after = usage.cache_rows_before, usage.cache_rows_after
    rows = "" if after == before else f", of which {after} stay in the cache"
    return (
        f"{usage.prompt_tokens} prompt tokens ({images}){rows}, first token "
        f"{timings.first_token_s * 1e3:.0f} ms, {usage.completion_tokens} tokens{rate}"
    )
