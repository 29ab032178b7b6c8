"""API keys: what is kept of one, how a new one is made, and those that the environment gives.

A key is 32 random bytes in text. Only its SHA-256 is kept: with that many bits there is nothing to guess, so that a
slow hash, which passwords need, would cost time and protect nothing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bundle.errors import SettingsError

PREFIX = "pvlm-"
"""By which people, and scanners of repositories, know one of ours."""
_RANDOM_BYTES = 32
_LEAST_CHARACTERS = 16
"""Of a key that somebody chose: 64 bits where they are hexadecimal digits."""
ENVIRONMENT_KEYS = {"POCKETVLM_API_KEYS": False, "POCKETVLM_ADMIN_KEYS": True}
"""Variables with keys in plain text, commas between them -> whether they are an administrator's."""

Limit = Annotated[int, Field(ge=1, le=10**12)]


class ApiKey(BaseModel):
    """What is kept of a key.

    Attributes:
        name: Whose it is, for the log and for revoking it.
        sha256: Of the key's characters, in hexadecimal digits.
        admin: May load and unload models and clear caches, beside what a plain key may.
        created: When it was made.
        expires: From when on it is refused; None: never.
        revoked: Since when it is refused; None: it is not.
        requests_per_minute: On average; a minute's may come at once. None, as below: any number.
        tokens_per_minute: Of prompts, images' included, and answers, likewise.
        concurrent_requests: Under way at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None

    def refusal(self, now: datetime) -> str:
        """Return why the key is not taken any more; empty while it is."""
        if self.revoked is not None:
            return f"the key {self.name} was revoked on {_told(self.revoked)}"
        if self.expires is not None and now >= self.expires:
            return f"the key {self.name} expired on {_told(self.expires)}"
        return ""


def _told(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def digest_of(key: bytes) -> str:
    """Return what is kept of a key's characters."""
    return hashlib.sha256(key).hexdigest()


def new_key() -> str:
    """Return a key that nobody has."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def keys_of_environment(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what is kept of the keys that variables hold, as fields of `ApiKey`.

    Raises:
        SettingsError: One is too short to be safe, or holds what no header can; it is not told.
    """
    return [
        {"name": f"{variable}-{place}", "sha256": digest_of(_checked(text, variable, place)), "admin": is_admin}
        for variable, is_admin in ENVIRONMENT_KEYS.items()
        if variable in environment
        for place, text in enumerate(environment[variable].split(","), start=1)
    ]


def _checked(text: str, variable: str, place: int) -> bytes:
    key = text.strip()
    if len(key) < _LEAST_CHARACTERS:
        raise SettingsError(
            f"variable {variable}: key {place} has {len(key)} characters; at least {_LEAST_CHARACTERS} are needed. "
            "Make one with: pocketvlm keys add NAME --file FILE, or openssl rand -hex 32."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingsError(
            f"variable {variable}: key {place} holds a blank, or what is no ASCII; no header carries it"
        )
    return key.encode("ascii")
