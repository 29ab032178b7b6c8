"""Beginnings of conversations, kept under a name in a folder: one file each, its facts in the first line."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bundle.errors import ParameterError, PrefixNotFoundError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SUFFIX = ".prefix"
_MOST_HEAD_BYTES = 4096
_MOST_LISTED = 20
"""In a message."""


@dataclass(frozen=True)
class PrefixFacts:
    """What is known of a prefix without reading it.

    Attributes:
        name: Of the prefix.
        model: That it is for.
        created: Unix time.
        prompt_tokens: Of its messages, with what opens an answer.
        image_tokens: Part of them.
        method: What is kept: its messages ("plain"), the rows of their text ("fused"), or what they left in a few
            attention heads ("task-vectors").
        cache_rows: That a request behind it begins with, in each layer.
        size_bytes: Of what is kept.
        replaced_heads: Of a task vector: the heads whose outputs it replaces, over all layers.
    """

    name: str
    model: str
    created: int
    prompt_tokens: int
    image_tokens: int
    method: Literal["plain", "fused", "task-vectors"] = "plain"
    cache_rows: int = 0
    size_bytes: int = 0
    replaced_heads: int = 0


class PrefixStore:
    """The prefixes of one folder. Its calls wait for the disk: one thread makes them.

    Args:
        folder: Made where it is missing.
        most_bytes: Of all prefixes together.
        most: How many there may be.
    """

    def __init__(self, folder: Path, most_bytes: int, most: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._most = most

    def add(self, facts: PrefixFacts, body: bytes) -> None:
        """Keep a prefix; it is there whole or not at all.

        Raises:
            ParameterError: Its name is taken, or there is no room.
        """
        head = json.dumps(asdict(facts)).encode() + b"\n"
        self.check_room(facts.name, len(head) + len(body))
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(facts.name)
        aside = path.with_name(f".{uuid.uuid4().hex}")
        try:
            aside.write_bytes(head + body)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def check_room(self, name: str, size_bytes: int) -> None:
        """Check that a prefix may be kept: before the work of reading it, and once more when it is.

        Raises:
            ParameterError: Its name is taken or none, there are too many, or they are too large.
        """
        self._check_free(name)
        sizes = [path.stat().st_size for path in self._paths()]
        if len(sizes) >= self._most:
            raise ParameterError(
                f"{len(sizes)} prefixes are stored, and at most {self._most} may be (api.max_prefixes); delete some",
                "name",
            )
        if sum(sizes) + size_bytes > self._most_bytes:
            raise ParameterError(
                f"the prefix takes {size_bytes} bytes; {sum(sizes)} of {self._most_bytes} are in use "
                "(api.max_prefix_bytes). Delete some, or send smaller images",
                "messages",
            )

    def _check_free(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ParameterError(f"name {name!r}: 1 to 64 of A-Z a-z 0-9 . _ - with a letter or digit first", "name")
        if self._path(name).is_file():
            raise ParameterError(
                f"a prefix {name!r} is stored already; delete it first, or choose another name", "name"
            )

    def size_bytes(self, name: str) -> int:
        """Return how large a prefix is.

        Raises:
            PrefixNotFoundError: There is none of that name.
        """
        return self._found(name).stat().st_size

    def read(self, name: str) -> tuple[PrefixFacts, bytes]:
        """Return a prefix's facts and body.

        Raises:
            PrefixNotFoundError: There is none of that name, or its file is damaged.
        """
        head, _, body = self._found(name).read_bytes().partition(b"\n")
        facts = _facts(head)
        if facts is None:
            raise PrefixNotFoundError(
                f"the file of the prefix {name!r} is damaged; delete the prefix and make it again", "prefix"
            )
        return facts, body

    def listed(self) -> list[PrefixFacts]:
        """Return the facts of all prefixes, by name, those aside whose files are damaged."""
        return [facts for path in self._paths() if (facts := _facts(_head(path))) is not None]

    def remove(self, name: str) -> None:
        """Forget a prefix.

        Raises:
            PrefixNotFoundError: There is none of that name.
        """
        self._found(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _paths(self) -> Iterator[Path]:
        yield from sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.stem))

    def _found(self, name: str) -> Path:
        if _NAME.fullmatch(name) and self._path(name).is_file():
            return self._path(name)
        names = [path.stem for path in self._paths()]
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        known = ", ".join(names[:_MOST_LISTED]) or "none"
        raise PrefixNotFoundError(f"no prefix {name[:64]!r} is stored here; stored: {known}{more}", "prefix")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(_MOST_HEAD_BYTES)


def _facts(head: bytes) -> PrefixFacts | None:
    """Return what a file's first line says; None where it is none of ours."""
    try:
        return PrefixFacts(**json.loads(head))
    except (ValueError, TypeError, RecursionError):
        return None
