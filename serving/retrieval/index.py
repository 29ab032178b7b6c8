"""An index of images on disk: their vectors in a file of faiss, and what they are of in `index.json` beside it.

`index.json` names the file of vectors and is written last, so that an update that was stopped leaves the index as it
was. Only vectors of the model that made the index are taken: those of another lie in another space.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import MissingExtraError, SettingsError
from bundle.extras import install_line
from pages.file import write_whole
from quant.evaluation.asking import Respondent, Vectors
from serving.retrieval.files import Stamp

INDEX = "index.json"
_SHOWN_DIGITS = 12


class Entry(BaseModel):
    """One image.

    Attributes:
        number: Its vector's, never given twice.
        size_bytes: Of the file.
        changed_ns: When it was written last.
        sha256: Of what it holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    size_bytes: int
    changed_ns: int
    sha256: str

    @property
    def stamp(self) -> Stamp:
        """By what the file is known to be as it was."""
        return Stamp(self.size_bytes, self.changed_ns, self.sha256)


class IndexFacts(BaseModel):
    """What `index.json` says.

    Attributes:
        format_version: Of this file.
        folder: Of the images, relative to the index.
        target: What made the vectors: a bundle or an endpoint, as it was named.
        model: Its name.
        identity: What tells its vectors from another model's.
        embedding_size: E.
        vectors: The file of vectors.
        vectors_sha256: Of that file.
        next_number: Of the next image.
        entries: By name, relative to the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    folder: str
    target: str
    model: str
    identity: str
    embedding_size: int = Field(gt=0)
    vectors: str
    vectors_sha256: str
    next_number: int = 0
    entries: dict[str, Entry] = Field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        name: Relative to the folder of images.
        path: Of the file.
        score: Cosine with the query.
    """

    name: str
    path: Path
    score: float


class ImageIndex:
    """An index that was read from disk.

    Args:
        directory: Of the index.
        facts: What it says of itself.
        vectors: faiss's index of them.
    """

    def __init__(self, directory: Path, facts: IndexFacts, vectors: Any) -> None:
        self.directory, self.facts, self._vectors = directory, facts, vectors

    @classmethod
    def read(cls, directory: Path) -> ImageIndex:
        """Return the index of a directory.

        Raises:
            SettingsError: It is none, is damaged, or of another format.
            MissingExtraError: faiss is not installed.
        """
        faiss = _faiss()
        try:
            facts = IndexFacts.model_validate_json((directory / INDEX).read_bytes())
        except OSError as error:
            raise SettingsError(
                f"{directory} is no index: {directory / INDEX} cannot be read ({error.strerror}); make one with "
                "pocketvlm index FOLDER -o INDEX --model BUNDLE"
            ) from error
        except ValidationError as error:
            raise SettingsError(
                f"{directory / INDEX} is damaged or of another version; index the folder anew"
            ) from error
        return cls(directory, facts, faiss.deserialize_index(_checked(directory, facts)))

    @classmethod
    def empty(cls, directory: Path, folder: Path, target: str, respondent: Respondent, size: int) -> ImageIndex:
        """Return an index of nothing, not yet on disk.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        faiss = _faiss()
        facts = IndexFacts(
            folder=os.path.relpath(folder.resolve(), directory.resolve()),
            target=target,
            model=respondent.name,
            identity=respondent.identity,
            embedding_size=size,
            vectors="",
            vectors_sha256="",
        )
        return cls(directory, facts, faiss.IndexIDMap2(faiss.IndexFlatIP(size)))

    @property
    def folder(self) -> Path:
        """The folder of its images."""
        return Path(os.path.normpath(self.directory.resolve() / self.facts.folder))

    @property
    def stamps(self) -> dict[str, Stamp]:
        """By what its files are known to be as they were."""
        return {name: entry.stamp for name, entry in self.facts.entries.items()}

    def require_model(self, respondent: Respondent) -> None:
        """Check that a model is the one that made the vectors.

        Raises:
            SettingsError: It is another one, or it does not embed.
        """
        require_vectors(respondent)
        if respondent.identity != self.facts.identity:
            raise SettingsError(
                f"{self.directory} holds vectors of {self.facts.model} ({self.facts.identity[:_SHOWN_DIGITS]}), and "
                f"this is {respondent.name} ({respondent.identity[:_SHOWN_DIGITS]}): those of two models cannot be "
                "compared. Name the model that made it, or index the folder anew with --overwrite"
            )

    def search(self, query: Vectors, k: int) -> list[Hit]:
        """Return the images nearest to a query, the nearest first.

        Args:
            query: [E] float32 of unit length.
            k: Most hits.

        Raises:
            SettingsError: The vector is of another size, or there are no images.
        """
        if not self.facts.entries:
            raise SettingsError(
                f"{self.directory} holds no image: all that {self.folder} held are gone. Index it again"
            )
        if query.shape != (self.facts.embedding_size,):
            raise SettingsError(
                f"the query has {query.size} numbers, the index {self.facts.embedding_size} of each image"
            )
        names = {entry.number: name for name, entry in self.facts.entries.items()}
        scores, numbers = self._vectors.search(query[None], min(k, len(names)))
        hits = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [Hit(names[number], self.folder / names[number], score) for number, score in hits]

    def changed(self, dropped: Sequence[str], stamped: Mapping[str, Stamp], vectors: Vectors) -> ImageIndex:
        """Return the index with images taken out and others put in; this one must not be used any more.

        Args:
            dropped: Names that leave.
            stamped: Names that come, or come anew.
            vectors: [n, E] float32 of unit length, of those.
        """
        entries = dict(self.facts.entries)
        out = [entries.pop(name).number for name in {*dropped, *stamped} if name in entries]
        if out:
            self._vectors.remove_ids(np.array(out, np.int64))
        numbers = np.arange(self.facts.next_number, self.facts.next_number + len(stamped), dtype=np.int64)
        if len(numbers):
            self._vectors.add_with_ids(np.ascontiguousarray(vectors, np.float32), numbers)
        for number, (name, stamp) in zip(numbers.tolist(), stamped.items(), strict=True):
            entries[name] = Entry(
                number=number, size_bytes=stamp.size_bytes, changed_ns=stamp.changed_ns, sha256=stamp.sha256
            )
        after = {"entries": entries, "next_number": self.facts.next_number + len(stamped)}
        return ImageIndex(self.directory, self.facts.model_copy(update=after), self._vectors)

    def write(self) -> None:
        """Write it to its directory, which is made; the vectors first, under a name of their own.

        Raises:
            OSError: It cannot be written; what stood there before stands there.
        """
        content = _faiss().serialize_index(self._vectors).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"vectors-{digest[:_SHOWN_DIGITS]}.faiss"
        write_whole(self.directory / name, content)
        self.facts = self.facts.model_copy(update={"vectors": name, "vectors_sha256": digest})
        write_whole(self.directory / INDEX, self.facts.model_dump_json(indent=1).encode())
        for other in self.directory.glob("vectors-*.faiss"):
            if other.name != name:
                other.unlink()


def require_vectors(respondent: Respondent) -> None:
    """Check that a model makes vectors.

    Raises:
        SettingsError: It does not.
    """
    if not respondent.embeds:
        does = "scores pairs" if respondent.ranks else "answers"
        hint = "; it puts in order what another finds, by --rerank" if respondent.ranks else ""
        raise SettingsError(f"{respondent.name} {does} and makes no vectors; name a model that embeds{hint}")


def _checked(directory: Path, facts: IndexFacts) -> Any:
    """Return the bytes of the file of vectors as faiss takes them, which are what was written."""
    path = directory / facts.vectors
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); index the folder anew") from error
    if (found := hashlib.sha256(content).hexdigest()) != facts.vectors_sha256:
        raise SettingsError(
            f"{path} was altered: sha256 {found[:_SHOWN_DIGITS]}, expected {facts.vectors_sha256[:_SHOWN_DIGITS]}; "
            "index the folder anew"
        )
    return np.frombuffer(content, np.uint8)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(f"an index is kept by faiss, which is not here: {install_line('retrieval')}") from error
    return faiss
