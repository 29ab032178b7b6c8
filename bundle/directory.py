"""A bundle on disk: opened and verified, or written aside and renamed into place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle import format_1
from bundle.errors import BundleError, BundleFileError, BundleFormatError, GateError
from bundle.external_data import external_files
from bundle.json_file import first_problem, printable
from bundle.manifest import FORMAT_VERSION, ComponentName, FileRecord, Manifest
from bundle.scratch import NEW, OLD, reason_of, remove_abandoned, scratch_beside, try_lack_of_room
from bundle.states import layers_of

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22
_MOST_MANIFEST_BYTES = 1 << 24


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A folder and what its manifest says of it; whoever opens one of its files asks here where it lies.

    Attributes:
        directory: The folder.
        manifest: As read from it.
    """

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The model's id."""
        return self.manifest.name

    def path(self, file: str) -> Path:
        """Return where a file lies.

        Raises:
            BundleFileError: The manifest does not list it: nobody knows whether it is the one that was measured.
        """
        if file not in self.manifest.files:
            raise BundleFileError(
                f"{self.directory / file} is not among the files that {MANIFEST} lists, so it is not opened. "
                "Export the checkpoint again."
            )
        return self.directory / file

    def graph_path(self, component: ComponentName) -> Path:
        """Return where a graph lies."""
        return self.path(self.manifest.components[component].file)


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a bundle, checked for form but not against the files.

    Raises:
        BundleFormatError: No manifest, not JSON, of another version, or with unknown fields.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleFormatError(
            f"{directory} is not a bundle: it holds no {MANIFEST}. Make one with: pocketvlm export CHECKPOINT -o BUNDLE"
        )
    _require_inside(path, directory)
    try:
        if (size_bytes := path.stat().st_size) > _MOST_MANIFEST_BYTES:
            raise BundleFormatError(f"{path} holds {size_bytes} bytes; at most {_MOST_MANIFEST_BYTES} are read")
        raw = json.loads(path.read_bytes())
        return Manifest.model_validate(format_1.upgraded(raw) if _is_older(raw) else raw)
    except ValidationError as error:
        raise BundleFormatError(_unreadable(path, first_problem(error))) from error
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BundleFormatError(_unreadable(path, printable(f"{type(error).__name__}: {error}"))) from error


def is_of_this_format(directory: Path) -> bool:
    """Return whether a bundle's manifest tells all that is written now, not of an export that is only read.

    Raises:
        BundleFormatError: There is no manifest that can be read.
    """
    states = read_manifest(directory).states
    tells_layers = not states or bool(layers_of(states))
    return tells_layers and not _is_older(json.loads((directory / MANIFEST).read_bytes()))


def _is_older(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("format_version") == format_1.VERSION


def _unreadable(path: Path, problem: str) -> str:
    return f"{path}: {problem}. This version reads formats {format_1.VERSION} and {FORMAT_VERSION}; export again."


def open_bundle(directory: Path | str, *, verify: bool = True, allow_ungated: bool = False) -> Bundle:
    """Return a bundle that is whole.

    Args:
        directory: The bundle.
        verify: Compare every file with its recorded size and digest (reads the weights once).
        allow_ungated: Accept a variant whose quality gate failed, or whose quality was never measured on samples.

    Raises:
        BundleFormatError: The manifest is unusable.
        BundleFileError: A file is missing, altered, or one that a graph reads its weights from is not listed.
        GateError: A gate failed or none was measured, and `allow_ungated` is False.
    """
    bundle = Bundle(Path(directory), read_manifest(Path(directory)))
    for name, record in bundle.manifest.files.items():
        if Path(name).name != name:
            raise BundleFormatError(
                f"{bundle.directory / MANIFEST} lists {name[:200]!r}; a bundle's files lie in its own folder"
            )
        _check_file(bundle.directory / name, record, verify)
    for part in (*bundle.manifest.components.values(), *bundle.manifest.segments):
        for file in external_files(bundle.path(part.file)):
            bundle.path(file)
    if not allow_ungated:
        _require_gated(bundle.directory, bundle.manifest)
    return bundle


def failed_gates(manifest: Manifest) -> str:
    """Return every gate that failed in words, its value, samples and limit; empty where none did."""
    return "; ".join(
        f"{g.name} {g.value:.4g} on {g.n}, needs {'>=' if g.direction == 'min' else '<='} {g.limit:.4g}"
        for g in manifest.gates
        if not g.passed
    )


def _require_gated(root: Path, manifest: Manifest) -> None:
    if listed := failed_gates(manifest):
        raise GateError(
            f"{root} failed its quality gate ({listed}). Quantize with more bits, measure on more samples where n is "
            "small, or load it anyway with --allow-ungated."
        )
    if manifest.is_gated is False:
        schemes = ", ".join(f"{name} {part.scheme}" for name, part in manifest.components.items())
        raise GateError(
            f"{root} was never measured on samples ({schemes}): what its weights cost in quality is unknown. "
            "Make it again without --no-evaluate, or load it anyway with --allow-ungated."
        )


def _check_file(path: Path, record: FileRecord, verify: bool) -> None:
    try:
        is_there = path.is_file()
    except OSError as error:  # a name that no file can have
        raise BundleFileError(f"{path} cannot be read: {error.strerror}") from error
    if not is_there:
        raise BundleFileError(f"{path} is missing; the manifest lists it with {record.size_bytes} bytes")
    _require_inside(path, path.parent)
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        raise BundleFileError(f"{path} holds {size_bytes} bytes, expected {record.size_bytes}: export it again")
    if verify and (found := sha256_of(path)) != record.sha256:
        raise BundleFileError(f"{path} was altered: sha256 {found[:12]}, expected {record.sha256[:12]}")


def _require_inside(path: Path, directory: Path) -> None:
    """Check that a file is not a link to one elsewhere: a bundle must not make a server read the host's files.

    Raises:
        BundleFileError: It is.
    """
    if not path.resolve().is_relative_to(directory.resolve()):
        raise BundleFileError(
            f"{path} is a link that leads out of the bundle, so it is not opened. Copy the file there."
        )


def seal(directory: Path, manifest: Manifest, unchanged: Mapping[str, FileRecord] | None = None) -> Bundle:
    """Record every file of `directory` in the manifest, write it, and return the bundle.

    Args:
        directory: The folder.
        manifest: All but its files.
        unchanged: Records of files that were sealed before and not written since; they are not read again.
    """
    known = unchanged or {}
    files = {
        path.name: known.get(path.name) or FileRecord(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    sealed = manifest.model_copy(update={"files": files})
    (directory / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle(directory, sealed)


@contextmanager
def write_aside(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block succeeds, and vanishes when it fails.

    Raises:
        BundleError: `target` exists and is not a bundle, or is one and `overwrite` is False, or cannot be written.
    """
    final = Path(target).resolve()
    remove_abandoned(final)
    if final.exists():
        if not overwrite:
            raise BundleError(f"{target} exists. Choose another -o, or pass --overwrite to replace it.")
        if not (final / MANIFEST).is_file():
            raise BundleError(f"{target} exists and is not a bundle; it is left alone. Choose another -o.")
    with ExitStack() as stack:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_beside(final))
        except OSError as error:
            raise BundleError(f"{target} cannot be written: {reason_of(error)}. Choose another -o.") from error
        try:
            yield scratch / NEW
            _put_in_place(scratch / NEW, final, scratch / OLD)
        except OSError as error:
            if reason := try_lack_of_room(error):
                raise BundleError(
                    f"{target} cannot be written: {reason}. Free some space there, or choose another -o."
                ) from error
            raise


def _put_in_place(new: Path, final: Path, old: Path) -> None:
    """Rename `new` to `final`, moving what stands there to `old`; where that fails, what stood there stands again."""
    was_there = final.exists()
    if was_there:
        final.rename(old)
    try:
        new.rename(final)
    except BaseException:
        if was_there:
            old.rename(final)
        raise
