"""A bundle's graphs built into engines, one after the other; what is there already and still true is kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bundle.directory import Bundle
from bundle.engines import (
    ENGINES,
    EngineIndex,
    EngineKey,
    EngineRecord,
    graph_digest,
    is_as_built,
    read_engines,
    write_engines,
)
from bundle.errors import BundleError, SettingsError
from bundle.manifest import ComponentName, FileRecord
from bundle.scratch import made_folder
from runtime.tensorrt.builder import Say, build, check_capabilities, written
from runtime.tensorrt.card import card_here
from runtime.tensorrt.library import LICENCE, Flavour, Library, open_library
from runtime.tensorrt.network import check_network, decompose, parse
from runtime.tensorrt.precision import check_products
from runtime.tensorrt.profiles import Limits, Profile, check_limits, profiles_of
from runtime.tensorrt.recorded import check_recorded


@dataclass(frozen=True)
class Form:
    """How graphs are written for the parser.

    Attributes:
        name: Part of an engine's key.
        write: From a bundle's graph, the outputs wanted and S to a serialized graph whose weights stay beside the
            bundle's.
        unread: From a bundle's graph to the inputs that it takes and does not read, which a parser may not read either.
    """

    name: str
    write: Callable[[Path, Collection[str], int], bytes]
    unread: Callable[[Path], Collection[str]]


@dataclass(frozen=True)
class Job:
    """What is built of what.

    Attributes:
        bundle: Of the portable dialect.
        folder: Of the engines.
        flavour: Whose engines.
        form: How graphs are written.
        limits: Of all engines.
        capabilities: Of cards, as TensorRT counts them; empty: as the builder sees fit.
    """

    bundle: Bundle
    folder: Path
    flavour: Flavour
    form: Form
    limits: Limits
    capabilities: tuple[int, ...] = ()


def compile_bundle(job: Job, say: Say) -> EngineIndex:
    """Build the engines of a bundle and return their index.

    Args:
        job: What is built of what.
        say: Told of each step.

    Raises:
        SettingsError: A dialect, size or card that engines cannot be had for, or a folder that holds something else.
        MachineError: TensorRT is missing, or refuses a graph.
    """
    manifest = job.bundle.manifest
    if manifest.dialect != "portable":
        raise SettingsError(
            f"{manifest.name} is in the {manifest.dialect} dialect, whose GroupQueryAttention and MatMulNBits TensorRT "
            "lacks; export the checkpoint with --dialect portable, quantize with --target tensorrt, and compile that"
        )
    job = replace(job, capabilities=tuple(sorted(set(job.capabilities))))
    library = open_library(job.flavour)
    check_capabilities(library, job.capabilities)
    check_products(manifest, job.capabilities)
    check_limits(job.limits, manifest)
    profiles = {name: profiles_of(manifest, each, job.limits) for name, each in manifest.components.items()}
    check_recorded(job.bundle, profiles)
    made_folder(job.folder, "-o")
    keys = {name: _key(job, library, name, each) for name, each in profiles.items()}
    index = _begun(job, keys)
    for name, key in keys.items():
        index = _with_engine(job, library, index, name, key, say)
    if read_engines(job.folder) != index:
        write_engines(job.folder, index)
    return index


def _key(job: Job, library: Library, name: ComponentName, profiles: Sequence[Profile]) -> EngineKey:
    """Return what decides a graph's engine."""
    return EngineKey(
        graph_sha256=graph_digest(job.bundle, name),
        form=job.form.name,
        builder=job.flavour,
        builder_version=library.version,
        capabilities=tuple(map(written, job.capabilities)),
        card=str(card_here()) if job.flavour == "tensorrt" else None,
        profiles=tuple(dict(profile) for profile in profiles),
    )


def _begun(job: Job, keys: Mapping[ComponentName, EngineKey]) -> EngineIndex:
    """Return the index of what is there already of that which is wanted: an index never tells limits of other engines.

    Raises:
        SettingsError: The folder holds something else.
    """
    empty = EngineIndex(bundle=job.bundle.name, licence=LICENCE, **asdict(job.limits))
    if not any(job.folder.iterdir()):
        return empty
    try:
        found = read_engines(job.folder)
    except BundleError as error:
        raise SettingsError(
            f"{job.folder} holds files and no {ENGINES} of ours; choose another -o, or empty it"
        ) from error
    if found.bundle != job.bundle.name:
        raise SettingsError(
            f"{job.folder} holds engines of {found.bundle}, not of {job.bundle.name}; choose another -o"
        )
    kept = {name: found.engines[name] for name, key in keys.items() if _holds(found, name, key)}
    return empty.model_copy(update={"engines": kept})


def _holds(index: EngineIndex, name: ComponentName, key: EngineKey) -> bool:
    record = index.engines.get(name)
    return record is not None and record.key == key


def _with_engine(
    job: Job, library: Library, index: EngineIndex, name: ComponentName, key: EngineKey, say: Say
) -> EngineIndex:
    """Return the index with the engine of a graph, built unless it is there."""
    there = index.engines.get(name)
    if there is not None and _is_whole(job.folder, there):
        say(f"{name}: built already, kept")
        return index
    component = job.bundle.manifest.components[name]
    profiles = key.profiles
    path = job.bundle.graph_path(name)
    outputs = job.bundle.manifest.always_given(name)
    network = parse(library, job.form.write(path, outputs, job.limits.cache_rows), path)
    check_network(network, component.role, job.form.unread(path))
    decompose(network)
    engine = build(network, profiles, job.capabilities, lambda phase: say(f"{name}: {phase}"))
    record = EngineRecord(file=f"{name}.engine", contents=_write(job.folder / f"{name}.engine", engine), key=key)
    say(f"{name}: {len(engine) / 1e6:.1f} MB")
    made = index.model_copy(update={"engines": {**index.engines, name: record}})
    write_engines(job.folder, made)
    return made


def _is_whole(folder: Path, record: EngineRecord) -> bool:
    try:
        return is_as_built(folder / record.file, record)
    except OSError:
        return False


def _write(path: Path, engine: bytes) -> FileRecord:
    aside = path.with_name(f"{path.name}.new")
    aside.write_bytes(engine)
    os.replace(aside, path)
    return FileRecord(size_bytes=len(engine), sha256=hashlib.sha256(engine).hexdigest())
