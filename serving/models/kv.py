"""Which rows of a request's prompt stay in the cache: what it says, what the server says, and what the model can do."""

from __future__ import annotations

from bundle.errors import ParameterError, SettingsError
from bundle.manifest import Manifest
from quant.kv.compressing import Compression
from quant.kv.compression import num_kept_rows
from quant.kv.needs import missing
from quant.kv.table import entry_of
from runtime.settings import Provider
from serving.protocol import KVCompression
from serving.settings import EngineSettings


class KVPolicies:
    """The KV policies of one model.

    Args:
        manifest: Of the model.
        settings: The server's, with what is done where a request says nothing.

    Raises:
        SettingsError: The model cannot do that.
    """

    def __init__(self, manifest: Manifest, settings: EngineSettings) -> None:
        self._manifest = manifest
        self._provider: Provider = settings.provider
        self._default = settings.kv
        if self._default is not None and (reason := self._refusal(self._default)):
            raise SettingsError(f"kv_policy {self._default.policy}: {reason}")

    def wanted(self, asked: KVCompression | None) -> KVCompression | None:
        """Return what is done to a request's rows; None where all stay.

        Args:
            asked: By the request.

        Raises:
            ParameterError: It means nothing, or the model cannot do it.
        """
        wanted = self._default if asked is None else asked
        if wanted is None:
            return None
        entry_of(wanted.policy)
        if not 0 < wanted.budget <= 1:
            raise ParameterError(f"kv.budget is {wanted.budget}; it must be above 0 and at most 1", "kv.budget")
        if reason := self._refusal(wanted):
            raise ParameterError(f"kv.policy {wanted.policy}: {reason}", "kv.policy")
        return None if wanted.budget == 1 else wanted

    def _refusal(self, wanted: KVCompression) -> str:
        """Return why the model cannot do something; empty where it can, or nothing is to be done."""
        if wanted.budget == 1:
            return ""
        if self._provider != "cpu":
            return f"rows are chosen on the CPU, and {self._manifest.name} runs on {self._provider}; leave kv out"
        return missing(wanted.policy, self._manifest)


def compression_of(wanted: KVCompression | None, num_tokens: int, *, is_default: bool = False) -> Compression | None:
    """Return what becomes of a prompt of so many tokens; None where all rows stay.

    Args:
        wanted: What is to be done.
        num_tokens: Of the prompt.
        is_default: The server says so, not the request: a prompt that is too short for it loses all rows but one.

    Raises:
        ParameterError: A request wants that no row stays.
    """
    if wanted is None:
        return None
    num_kept = num_kept_rows(num_tokens, wanted.budget) or int(is_default)
    if not num_kept:
        raise ParameterError(
            f"kv.budget {wanted.budget:g} of a prompt of {num_tokens} tokens keeps no row; send at least "
            f"{1 / num_tokens:.4f}",
            "kv.budget",
        )
    return Compression(wanted.policy, num_kept) if num_kept < num_tokens else None
