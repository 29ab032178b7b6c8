"""An index brought up to what its folder holds: only what is new or changed is embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.errors import SettingsError
from quant.evaluation.asking import RefusedError, Respondent, Vectors
from serving.retrieval.files import Stamp, changes_of
from serving.retrieval.index import INDEX, ImageIndex, require_vectors

Progress = Callable[[str], None]
_AT_ONCE = 16


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        index: As it is now, on disk.
        num_kept: Images that were there and are as they were.
        num_embedded: Images that are new, or changed.
        num_gone: Images that are no longer there.
        unread: Names of files that could not be embedded, and why.
    """

    index: ImageIndex
    num_kept: int
    num_embedded: int
    num_gone: int
    unread: Mapping[str, str]


async def update_index(
    directory: Path, folder: Path, respondent: Respondent, target: str, progress: Progress, *, anew: bool = False
) -> Update:
    """Make or update an index, and return what was done.

    Args:
        directory: Of the index.
        folder: Of the images.
        respondent: A model that embeds.
        target: How it was named, for later searches.
        progress: Called with a line now and then.
        anew: Whatever is there is left out.

    Raises:
        SettingsError: The index is of another model or another folder; there is no image; the model does not embed.
    """
    require_vectors(respondent)
    index = None if anew or not (directory / INDEX).exists() else ImageIndex.read(directory)
    if index is not None:
        index.require_model(respondent)
        if index.folder != folder.resolve():
            raise SettingsError(
                f"{directory} is of {index.folder}, and not of {folder.resolve()}; name that folder, another --output, "
                "or --overwrite"
            )
    changes = changes_of(folder, index.stamps if index else {}, directory)
    stamped, vectors, unread = await _embedded(folder, changes.read, respondent, progress)
    if index is None:
        if not stamped:
            raise SettingsError(f"{folder} holds no image that could be embedded{_first(unread)}")
        index = ImageIndex.empty(directory, folder, target, respondent, vectors.shape[1])
    index = index.changed([*changes.gone, *unread], stamped, vectors)
    index.write()
    return Update(index, len(changes.kept), len(stamped), len(changes.gone), unread)


async def _embedded(
    folder: Path, names: Sequence[str], respondent: Respondent, progress: Progress
) -> tuple[dict[str, Stamp], Vectors, dict[str, str]]:
    stamped: dict[str, Stamp] = {}
    unread: dict[str, str] = {}
    found: list[Vectors] = []
    for start in range(0, len(names), _AT_ONCE):
        if start % (8 * _AT_ONCE) == 0:
            progress(f"embedding images: {start} of {len(names)}")
        piece = list(_read(folder, names[start : start + _AT_ONCE], unread))
        for name, stamp, vector in await _vectors(piece, respondent, unread):
            stamped[name] = stamp
            found.append(vector)
    return stamped, np.stack(found) if found else np.zeros((0, 1), np.float32), unread


def _read(folder: Path, names: Sequence[str], unread: dict[str, str]) -> Iterator[tuple[str, Stamp, bytes]]:
    for name in names:
        try:
            name.encode()
            stamp, data = Stamp.read(folder / name)
            yield name, stamp, data
        except UnicodeEncodeError:  # bytes that an older system wrote, which no index in JSON can name
            unread[name.encode(errors="surrogateescape").decode(errors="replace")] = "its name is no UTF-8; rename it"
        except OSError as error:
            unread[name] = str(error.strerror)


async def _vectors(
    piece: Sequence[tuple[str, Stamp, bytes]], respondent: Respondent, unread: dict[str, str]
) -> list[tuple[str, Stamp, Vectors]]:
    """Return the vectors of images; where one is refused, they are tried one by one."""
    if not piece:
        return []
    try:
        vectors = await respondent.embed([data for _, _, data in piece], "document")
        return [(name, stamp, vector) for (name, stamp, _), vector in zip(piece, vectors, strict=True)]
    except RefusedError as error:
        if len(piece) == 1:
            unread[piece[0][0]] = str(error)
            return []
        return [each for one in piece for each in await _vectors([one], respondent, unread)]


def _first(unread: Mapping[str, str]) -> str:
    return next((f"; {name}: {why}" for name, why in unread.items()), "")
