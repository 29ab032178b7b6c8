"""The keys that a server takes, as the file has them now, and what each has taken. Used from one event loop."""

from __future__ import annotations

import hmac
import logging
import os
import time
from datetime import datetime, timezone
from pathlib import Path

from bundle.errors import KeyRefusedError, SettingsError
from serving.access.key_file import read_keys
from serving.access.keys import ApiKey, digest_of
from serving.access.limits import KeyLimits
from serving.access.settings import AccessSettings

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks at the file: how late a revoked key is refused."""


class Keyring:
    """The keys of the settings and those of the file, which is read again when it changes.

    Args:
        settings: Name them.

    Raises:
        SettingsError: The file is unusable, or a key is there twice.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._given = settings.keys
        self._file = settings.keys_file
        self._version = None if self._file is None else _version_of(self._file)
        self._looked_s = time.monotonic()
        self._limits: dict[str, KeyLimits] = {}
        self.keys = self._read()
        if not self.keys:
            logger.warning("the file of keys %s holds none: every request is refused until it does", self._file)

    def match(self, key: bytes) -> ApiKey:
        """Return the key that a request came with. Every key is compared, each in constant time.

        Args:
            key: As it was sent; empty where none was.

        Raises:
            KeyRefusedError: It is none of ours, was revoked or has expired.
        """
        self._look()
        digest, found = digest_of(key), None
        for each in self.keys:
            if hmac.compare_digest(each.sha256, digest):
                found = each
        if not key:
            raise KeyRefusedError("no key came with the request; send it as Authorization: Bearer KEY, or x-api-key")
        if found is None:
            raise KeyRefusedError("the key is wrong: this server has none such. Ask its operator for one.")
        if refusal := found.refusal(datetime.now(timezone.utc)):
            raise KeyRefusedError(f"{refusal}; ask the server's operator for another")
        return found

    def limits_of(self, key: ApiKey) -> KeyLimits:
        """Return what a key has taken, and may."""
        if key.sha256 not in self._limits:
            self._limits[key.sha256] = KeyLimits(key)
        return self._limits[key.sha256]

    def _look(self) -> None:
        """Read the file again where it has changed; one that is unusable changes nothing, and the log tells."""
        if self._file is None or time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = time.monotonic()
        version = _version_of(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self.keys = self._read()
        except SettingsError as error:
            logger.error("keys are as they were: %s", error)
            return
        self._forget_limits()
        logger.info("%s was read again: %d keys", self._file, len(self.keys))

    def _read(self) -> tuple[ApiKey, ...]:
        keys = (*self._given, *(() if self._file is None else read_keys(self._file)))
        if len({key.sha256 for key in keys}) < len(keys):
            raise SettingsError(f"a key of {self._file} is among those of the settings too; remove one of them")
        return keys

    def _forget_limits(self) -> None:
        """Keep what was taken by keys whose limits are what they were, and nothing of others."""
        kept = {key.sha256: self._limits.get(key.sha256) for key in self.keys}
        self._limits = {
            key.sha256: limits for key in self.keys if (limits := kept[key.sha256]) is not None and limits.is_of(key)
        }


def _version_of(file: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file; None of one that is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
