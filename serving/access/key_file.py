"""The file of keys: one JSON object a line, each what is kept of one key. Read whole, replaced whole.

    {"name": "ci", "sha256": "9f86…", "requests_per_minute": 60, "expires": "2027-01-31T00:00:00Z"}

Lines that begin with # and empty ones are left alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from bundle.errors import SettingsError
from serving.access.keys import ApiKey

MOST_KEYS = 1000
"""In one file: each request is compared with all of them, at 0.6 µs each."""
_MOST_BYTES = 1 << 20
_REFUSED_MODES = stat.S_IWGRP | stat.S_IRWXO
"""Whoever can write the file lets in whom they like. A group may read it, as the volumes of Kubernetes need."""
_OWN_MODE = stat.S_IRUSR | stat.S_IWUSR


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    Raises:
        SettingsError: It cannot be read, is open to others, or a line is no key; what the line holds is not told.
    """
    keys = [key for _, key in _keys_of(file, _read(file).splitlines())]
    _check_once(file, [key.name for key in keys], "name")
    _check_once(file, [key.sha256 for key in keys], "sha256")
    return tuple(keys)


def add_key(file: Path, key: ApiKey) -> None:
    """Write a key behind those of a file, which is made, for its owner alone, where it is absent.

    Raises:
        SettingsError: The file is unusable, full, or has a key of that name.
    """
    with _locked(file):
        keys = read_keys(file) if file.exists() else ()
        if key.name in {each.name for each in keys}:
            raise SettingsError(f"{file} has a key named {key.name} already; choose another name")
        if len(keys) >= MOST_KEYS:
            raise SettingsError(f"{file} holds {len(keys)} keys; at most {MOST_KEYS} are read. Remove revoked ones.")
        lines = _read(file).splitlines() if file.exists() else []
        _replace(file, [*lines, _line(key)])


def revoke_key(file: Path, name: str) -> ApiKey:
    """Mark a key as revoked, and return it.

    Raises:
        SettingsError: The file is unusable, or has no key of that name that is not revoked.
    """
    with _locked(file):
        lines = _read(file).splitlines()
        for place, key in _keys_of(file, lines):
            if key.name == name and key.revoked is None:
                revoked = key.model_copy(update={"revoked": datetime.now(timezone.utc).replace(microsecond=0)})
                lines[place] = _line(revoked)
                _replace(file, lines)
                return revoked
    names = ", ".join(key.name for key in read_keys(file) if key.revoked is None) or "none"
    raise SettingsError(f"{file} has no key named {name} that could be revoked; there are: {names}")


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            _check_mode(file, os.fstat(opened.fileno()).st_mode)
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"the file of keys {file} cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"the file of keys {file} holds more than {_MOST_BYTES} bytes; remove revoked keys")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"the file of keys {file} is not UTF-8, at byte {error.start}") from error


def _check_mode(file: Path, mode: int) -> None:
    if mode & _REFUSED_MODES:
        raise SettingsError(
            f"the file of keys {file} is open to others (mode {stat.S_IMODE(mode):04o}): they could let themselves in. "
            f"Close it with: chmod 600 {file}"
        )


def _keys_of(file: Path, lines: list[str]) -> Iterator[tuple[int, ApiKey]]:
    """Yield the place of each line that is a key, and the key."""
    num_keys = 0
    for place, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        num_keys += 1
        if num_keys > MOST_KEYS:
            raise SettingsError(f"the file of keys {file} holds more than {MOST_KEYS} keys; remove revoked ones")
        try:
            yield place, ApiKey.model_validate_json(line)
        except ValidationError as error:
            raise SettingsError(f"{file}, line {place + 1}: {_problem(error)}") from None


def _problem(error: ValidationError) -> str:
    """Return what is wrong with a line, without what it holds: that could be a key in plain text."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else "it is no JSON object of a key; see pocketvlm keys --help"


def _check_once(file: Path, values: list[str], noun: str) -> None:
    if len(set(values)) < len(values):
        place = next(place for place, value in enumerate(values, 1) if value in values[: place - 1])
        raise SettingsError(f"{file}: key {place} has the {noun} of an earlier one; remove one of them")


def _line(key: ApiKey) -> str:
    return key.model_dump_json(exclude_defaults=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other commands from changing the file while the block lasts."""
    try:
        folder = os.open(file.absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise SettingsError(f"the file of keys {file} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(file: Path, lines: list[str]) -> None:
    """Put another file in the place of this one, as a whole, with its mode and its owner."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        with open(descriptor, "w", encoding="utf-8") as opened:
            opened.write("\n".join(lines) + "\n")
            if file.exists():
                before = file.stat()
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                with suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            else:
                os.fchmod(descriptor, _OWN_MODE)
            opened.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise SettingsError(f"the file of keys {file} cannot be written: {error.strerror}") from error
