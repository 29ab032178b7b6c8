"""Which rows of a request's prompt stay in the cache: what it says, what the server says, and what the model can do."""

from __future__ import annotations

from bundle.errors import ParameterError
from serving.protocol import GenerateRequest, KVCompression
from serving.settings import EngineSettings


def compression_of(request: GenerateRequest, settings: EngineSettings) -> KVCompression | None:
    """Return what a request asks for, or the server's default; None keeps all rows."""
    wanted = request.kv
    if wanted is None and settings.kv_policy is not None and settings.kv_budget is not None:
        wanted = KVCompression(settings.kv_policy, settings.kv_budget)
    return None if wanted is None or wanted.budget == 1 else wanted


def check_compression(wanted: KVCompression | None) -> None:
    """Refuse what a model cannot do.

    Raises:
        ParameterError: It keeps all rows.
    """
    if wanted is not None:
        raise ParameterError(
            f"kv.budget is {wanted.budget:g}; this model keeps all rows of a prompt. Leave kv out, or send budget 1.",
            "kv.budget",
        )
