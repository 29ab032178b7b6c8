"""Which replica holds what a request brings: its images, encoded, and its beginning, read.

A process that sends requests remembers where it sent what. Of what it never sent, each content has a home among the
replicas that all processes compute alike (rendezvous hashing), so that two ingress replicas that share a conversation
agree without a word. Neither is worth a queue: who holds something and is much busier than the others is passed over
(consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018, with a bound in requests).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile

from serving.models.elsewhere import SentImage
from serving.protocol import (
    ClassifyRequest,
    EmbedInput,
    EmbedRequest,
    GenerateRequest,
    ImagePart,
    JoinedPart,
    Message,
    ScoreRequest,
    TextPart,
    VideoPart,
)

_KEY_BYTES = 8
_SAMPLE_BYTES = 64 << 10
"""Of a file's beginning and of its end: a choice of replicas is only a guess, and hashing megabytes stops the loop."""
_CHUNK_CHARACTERS = 512
"""Texts that begin alike are told so in steps of this length."""
_MOST_KEYS_OF_REQUEST = 256
_MOST_KEYS = 100_000
"""Remembered, least recently used dropped first; about 30 MB."""
_MOST_HOLDERS = 4
"""Remembered of one content."""
_HELD_SLACK = 4.0
"""Requests that a replica which holds something may have more than the least busy one: half of the engine's batch."""
_HOME_SLACK = 1.0
"""The same of a replica that holds nothing yet: there is nothing to win now."""


@dataclass(frozen=True)
class Contents:
    """What a request brings, by content.

    Attributes:
        beginnings: Of its prompt up to the end of each part and of each stretch of a text, the shortest first. What
            stands in front of the first message of a user is in all of them, and is none by itself: all share it.
        images: Of each picture and video.
    """

    beginnings: tuple[bytes, ...] = ()
    images: tuple[bytes, ...] = ()

    @property
    def home_key(self) -> bytes:
        """What its home goes by: a conversation's stays the same from turn to turn; empty where it brings nothing."""
        return next(iter((*self.images, *self.beginnings)), b"")


def contents_of(request: object) -> Contents:
    """Return what a request brings; nothing where it is of no kind whose replicas keep anything."""
    if isinstance(request, GenerateRequest):
        return _of_prompt(request)
    if isinstance(request, EmbedRequest):
        return Contents(images=_images_of(request.inputs))
    if isinstance(request, ScoreRequest):
        return Contents(images=_images_of([part for pair in request.pairs for part in pair]))
    if isinstance(request, ClassifyRequest):
        return Contents(images=tuple(_file(part.data) for part in request.images))
    if isinstance(request, SentImage):
        return Contents(images=(request.key,))
    return Contents()


def _images_of(inputs: Sequence[EmbedInput]) -> tuple[bytes, ...]:
    parts = [part for each in inputs for part in (each.parts if isinstance(each, JoinedPart) else (each,))]
    return tuple(dict.fromkeys(_file(part.data) for part in parts if isinstance(part, ImagePart)))


def opening_of(messages: Sequence[Message]) -> bytes:
    """Return a key that a conversation keeps from turn to turn: of all up to the first answer; empty of nothing."""
    opening, is_empty = blake2b(digest_size=_KEY_BYTES), True
    for message in takewhile(lambda message: message.role != "assistant", messages):
        is_empty = False
        opening.update(_start(message) + b"".join(_contents(part) for part in _parts(message)))
    return b"" if is_empty else opening.digest()


def _of_prompt(request: GenerateRequest) -> Contents:
    before = (request.adapter, *(tool.name for tool in request.tools))  # rows are of one adapter
    beginning = blake2b("\0".join(before).encode(), digest_size=_KEY_BYTES)
    beginnings, images, is_common = list[bytes](), list[bytes](), True
    messages = request.messages if request.text is None else (Message("user", (TextPart(request.text),)),)
    for message in messages:
        is_common = is_common and message.role == "system"
        beginning.update(_start(message))
        for part in _parts(message):
            images += () if isinstance(part, str) else part
            beginning.update(_contents(part))
            if not is_common and len(beginnings) < _MOST_KEYS_OF_REQUEST:
                beginnings.append(beginning.digest())
    return Contents(tuple(beginnings), tuple(images))


def _start(message: Message) -> bytes:
    return f"\0{message.role}\0".encode()


def _parts(message: Message) -> Iterator[str | tuple[bytes, ...]]:
    """Yield stretches of text, and files by their keys."""
    for part in message.parts:
        if isinstance(part, TextPart):
            yield from (
                part.text[start : start + _CHUNK_CHARACTERS] for start in range(0, len(part.text), _CHUNK_CHARACTERS)
            )
        else:
            yield tuple(map(_file, part.files if isinstance(part, VideoPart) else (part.data,)))


def _contents(part: str | tuple[bytes, ...]) -> bytes:
    return part.encode() if isinstance(part, str) else b"".join(part)


def _file(data: bytes) -> bytes:
    sample = data if len(data) <= 2 * _SAMPLE_BYTES else data[:_SAMPLE_BYTES] + data[-_SAMPLE_BYTES:]
    return blake2b(len(data).to_bytes(8, "little") + sample, digest_size=_KEY_BYTES).digest()


class Whereabouts:
    """What this process sent where. Used by one event loop.

    Args:
        most_keys: That are remembered.
    """

    def __init__(self, most_keys: int = _MOST_KEYS) -> None:
        self._most_keys = most_keys
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def note(self, contents: Contents, replica: str) -> None:
        """Take down that a replica got what a request brings."""
        for key in (*contents.images, *contents.beginnings):
            others = tuple(each for each in self._holders.pop(key, ()) if each != replica)
            self._holders[key] = (replica, *others)[:_MOST_HOLDERS]
        while len(self._holders) > self._most_keys:
            self._holders.popitem(last=False)

    def preferred(self, contents: Contents, loads: Mapping[str, float]) -> str | None:
        """Return the replica that a request shall go to, None where any is as good.

        Args:
            contents: That it brings.
            loads: Of the replicas that can take it: requests that each has.
        """
        if not contents.home_key or len(loads) < 2:
            return None
        least = min(loads.values())
        for key in (*reversed(contents.beginnings), *contents.images):
            near = [
                each
                for each in self._holders.get(key, ())
                if loads.get(each, least + _HELD_SLACK + 1) <= least + _HELD_SLACK
            ]
            if near:
                return min(near, key=lambda each: loads[each])
        home = home_of(contents.home_key, loads)
        return home if loads[home] <= least + _HOME_SLACK else None


def home_of(key: bytes, replicas: Iterable[str]) -> str:
    """Return where a content belongs among replicas: the same wherever it is computed; if one goes, few move.

    Args:
        key: Of the content.
        replicas: At least one.
    """
    return max(replicas, key=lambda each: blake2b(key + each.encode(), digest_size=_KEY_BYTES).digest())
