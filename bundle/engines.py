"""What lies in a folder of TensorRT engines, and what each was built of: an engine of something else is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bundle.directory import Bundle, sha256_of
from bundle.errors import BundleFileError
from bundle.external_data import external_files
from bundle.fields import Text
from bundle.json_file import read_json
from bundle.manifest import ComponentName, FileRecord

ENGINES = "engines.json"
FORM_VERSION = 3
"""Counts up where the same bundle gives another graph for the parser, in `graphs.lowering.tensorrt`, in
`tensorrt_attention` or in `plain`: engines of another are not opened."""
FORMS = tuple(f"{name}-{FORM_VERSION}" for name in ("standard", "plain"))
"""How graphs are written for the parser now: as they are, and in operators of opset 20."""
_Sizes = tuple[int, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineKey(_Frozen):
    """All that decides what an engine is; where a part of it differs, the engine is another.

    Attributes:
        graph_sha256: Digest over the graph's file and those of its weights.
        form: How the graph was written for the parser: a name and a number that counts its changes.
        builder: Whose engine it is.
        builder_version: An engine is loaded by the version that built it.
        capabilities: Of the cards that it was built for, such as "8.6", in order; empty: as the builder sees fit.
        card: The one that it was built on, where it runs on no other: TensorRT's; None: TensorRT-RTX's, and in folders
            that were written before it was told.
        profiles: For each, the least, usual and largest shape of every input.
    """

    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    form: Text
    builder: Literal["tensorrt", "tensorrt-rtx"]
    builder_version: Text
    capabilities: tuple[Text, ...]
    card: Text | None = None
    profiles: tuple[dict[str, tuple[_Sizes, _Sizes, _Sizes]], ...]


class EngineRecord(_Frozen):
    """One engine.

    Attributes:
        file: In the folder.
        contents: Its size and digest.
        key: What it was built of.
    """

    file: Text = Field(pattern=r"^[A-Za-z0-9_.-]+\.engine$")
    contents: FileRecord
    key: EngineKey


class EngineIndex(_Frozen):
    """The file `engines.json`.

    Attributes:
        format_version: Of this file.
        bundle: The name of the bundle that engines were built of.
        licence: Whose terms engines are under.
        cache_rows: S, of every sequence.
        max_batch: Sequences or texts in one run; None in folders that were written before it was told.
        max_prompt_tokens: Of a prompt in one run; None likewise.
        max_images: Images or tiles in one run; None likewise.
        image_sizes_px: The least, usual and largest (height, width) of an image; None likewise, and without images.
        engines: By the graph's name in the bundle.
    """

    format_version: Literal[1] = 1
    bundle: Text
    licence: Text
    cache_rows: int = Field(ge=1)
    max_batch: int | None = Field(default=None, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_images: int | None = Field(default=None, ge=1)
    image_sizes_px: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    engines: dict[str, EngineRecord] = Field(default_factory=dict, max_length=64)


def graph_digest(bundle: Bundle, name: ComponentName) -> str:
    """Return a digest over a graph and its weights, from the digests that the manifest records."""
    graph = bundle.graph_path(name)
    files = sorted({graph.name, *external_files(graph)})
    lines = "".join(f"{file} {bundle.manifest.files[file].sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_engines(folder: Path) -> EngineIndex:
    """Return what a folder of engines holds.

    Raises:
        BundleFileError: It holds none, or its index is damaged.
    """
    if not (folder / ENGINES).is_file():
        raise BundleFileError(
            f"{folder} holds no {ENGINES}, so no engines. Build some with: pocketvlm compile BUNDLE -o {folder}"
        )
    return read_json(EngineIndex, folder / ENGINES)


def write_engines(folder: Path, index: EngineIndex) -> None:
    """Write the index of a folder; whoever reads it meanwhile finds the old one or the new one."""
    aside = folder / f"{ENGINES}.new"
    aside.write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / ENGINES)


def is_as_built(path: Path, record: EngineRecord) -> bool:
    """Return whether a file holds what a build wrote.

    Raises:
        OSError: It cannot be read.
    """
    return path.stat().st_size == record.contents.size_bytes and sha256_of(path) == record.contents.sha256


def require_fresh(bundle: Bundle, folder: Path, name: ComponentName, record: EngineRecord) -> None:
    """Check that an engine was built of a bundle's graph as it is now, and is whole.

    Raises:
        BundleFileError: It was not, or is not.
    """
    path = folder / record.file
    if record.key.graph_sha256 != graph_digest(bundle, name):
        raise BundleFileError(
            f"{path} is stale: it was built of another {bundle.graph_path(name).name} than {bundle.directory} holds. "
            f"Build it again with: pocketvlm compile {bundle.directory} -o {folder}"
        )
    if record.key.form not in FORMS:
        raise BundleFileError(
            f"{path} is stale: its graph was written as {record.key.form}, and is {' or '.join(FORMS)} now. Build it "
            f"again with: pocketvlm compile {bundle.directory} -o {folder}"
        )
    try:
        found = path.stat().st_size
        is_whole = is_as_built(path, record)
    except OSError as error:
        raise BundleFileError(f"{path} cannot be read: {error.strerror}. Compile the bundle again.") from error
    if not is_whole:
        raise BundleFileError(
            f"{path} holds {found} bytes that are not those which were built. Compile the bundle again."
        )
