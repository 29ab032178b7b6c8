"""A server's settings: one TOML file, then environment variables, then flags; the later wins.

    [api]                           POCKETVLM_API__MAX_IMAGES=4
    max_images = 4

Environment names are `POCKETVLM_` and the setting's path in capitals, two underscores between its parts. A name that
is no setting is an error, in each of the three.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle.errors import SettingsError
from serving.access.keys import ENVIRONMENT_KEYS, keys_of_environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from serving.settings import ServerSettings

ENVIRONMENT_PREFIX = "POCKETVLM_"
_OTHER_VARIABLES = frozenset({"POCKETVLM_CRDS", "POCKETVLM_KEY", *ENVIRONMENT_KEYS})
"""Variables with our prefix that are no settings: of the tests, of a client, and keys, which are hashed at once."""


_KEYS = ("api", "access", "keys")


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> ServerSettings:
    """Return the settings of a file, environment variables and flags, the later winning.

    Args:
        file: TOML; None reads none.
        environment: All variables of the process; those without our prefix are not ours to judge.
        flags: By dotted path, such as "engine.max_sequences"; None stands for a flag that was not given.

    Raises:
        SettingsError: The file cannot be read, a name is no setting, or a value is not allowed.
    """
    collected = _Collected()
    if file:
        collected.add_file(file)
    for name, text in sorted((environment or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _OTHER_VARIABLES:
            collected.put(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), text, f"variable {name}")
    if keys := keys_of_environment(environment or {}):
        collected.put(list(_KEYS), keys, " and ".join(ENVIRONMENT_KEYS))
    for dotted, value in (flags or {}).items():
        if value is not None:
            collected.put(dotted.split("."), value, f"flag {dotted}")
    try:
        return ServerSettings.model_validate(collected.values)
    except ValidationError as error:
        raise SettingsError(_first_problem(error, collected.sources)) from error


class _Collected:
    """Values of all sources, the later having replaced the earlier.

    Attributes:
        values: As nested tables.
        sources: Path of each value -> what it was read from, in words.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[tuple[str, ...], str] = {}

    def add_file(self, file: Path) -> None:
        """Add what a TOML file says."""
        for path, value in _leaves(_read_toml(file)):
            self.put(list(path), value, f"settings file {file}")

    def put(self, path: list[str], value: Any, source: str) -> None:
        """Set one value, making the tables on its way."""
        table = self.values
        for depth, name in enumerate(path[:-1], start=1):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                whose = self.sources[tuple(path[:depth])]
                raise SettingsError(f"{source}: {name} is a value, not a table of settings, in {whose}")
        table[path[-1]] = value
        self.sources[tuple(path)] = source


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of nested tables with its path; an empty table is a value."""
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {file} is not TOML: {error}") from error


def _first_problem(error: ValidationError, sources: Mapping[tuple[str, ...], str]) -> str:
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    where = ".".join(path)
    source = _source_of(path, sources)
    more = f" ({error.error_count()} problems in all)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{source}{where} is no setting of the server{_nearest(where, source)}{more}"
    if path[: len(_KEYS)] == _KEYS:  # what is there may be a key in plain text
        return f"{source}setting {where}: {first['msg']}{more}"
    if first["type"] == "value_error":
        why = str(first["ctx"]["error"])
        return f"{_source_of(path, _named_in(why, sources))}settings {where or 'together'}: {why}{more}"
    if first["type"] == "model_type":
        return f"{source}{where} is a table of settings, not a value such as {first['input']!r}{more}"
    if first["type"].startswith("byte_size"):
        wanted = "it must be a number of bytes, or such as 512MiB or 2GB"
        return f"{source}setting {where} = {first['input']!r}: {wanted}{more}"
    return f"{source}setting {where} = {first['input']!r}: {first['msg']}{more}"


def _source_of(path: tuple[str, ...], sources: Mapping[tuple[str, ...], str]) -> str:
    """Return where the value at a path, or those below it, came from, as the beginning of a message."""
    found = [source for place, source in sources.items() if place[: len(path)] == path or path[: len(place)] == place]
    return f"{', '.join(dict.fromkeys(found))}: " if found else ""


def _named_in(why: str, sources: Mapping[tuple[str, ...], str]) -> Mapping[tuple[str, ...], str]:
    """Return the sources of the settings that a message about several names; all where it names none."""
    words = set(re.findall(r"\w+", why))
    return {path: source for path, source in sources.items() if path[-1] in words} or sources


def _nearest(where: str, source: str) -> str:
    """Return advice on an unknown name: the setting most like it, as its source would spell it, or where all stand."""
    known = [".".join(path) for path, _ in _leaves(ServerSettings().model_dump())]
    near = get_close_matches(where, known, n=1, cutoff=0.7)
    if not near:
        return "; see pocketvlm serve --help and docs/architecture.md"
    spelled = ENVIRONMENT_PREFIX + near[0].replace(".", "__").upper() if source.startswith("variable") else near[0]
    return f"; did you mean {spelled}?"
