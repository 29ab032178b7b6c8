"""What an answer took, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from serving.protocol import FinishedEvent, Usage


def end_fields(finished: FinishedEvent) -> dict[str, Any]:
    """Return what a finished answer counts."""
    return {"usage": usage_body(finished.usage), "timings": dict(vars(finished.timings))}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return token counts in OpenAI's form; images' tokens are part of the prompt's."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "cached_image_tokens": usage.cached_image_tokens,
            "cache_rows_before": usage.cache_rows_before,
            "cache_rows_after": usage.cache_rows_after,
            "kept_image_tokens": usage.kept_image_tokens,
        },
    }
