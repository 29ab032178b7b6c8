"""A bundle on disk: opened and verified, or written aside and renamed into place."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from bundle.errors import BundleError, BundleFileError, BundleFormatError, GateError
from bundle.manifest import FORMAT_VERSION, FileRecord, Manifest

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


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
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleFormatError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} problems). "
            f"This version reads format {FORMAT_VERSION}; export the checkpoint again."
        ) from error


def open_bundle(directory: Path | str, *, verify: bool = True, allow_ungated: bool = False) -> Manifest:
    """Return the manifest of a bundle that is whole.

    Args:
        directory: The bundle.
        verify: Compare every file with its recorded size and digest (reads the weights once).
        allow_ungated: Accept a variant whose quality gate failed, or whose quality was never measured on samples.

    Raises:
        BundleFormatError: The manifest is unusable.
        BundleFileError: A file is missing or altered.
        GateError: A gate failed or none was measured, and `allow_ungated` is False.
    """
    root = Path(directory)
    manifest = read_manifest(root)
    for name, record in manifest.files.items():
        if Path(name).name != name:
            raise BundleFormatError(f"{root / MANIFEST} lists {name!r}; a bundle's files lie in its own folder")
        _check_file(root / name, record, verify)
    for component in manifest.components.values():
        if component.file not in manifest.files:
            raise BundleFileError(f"{root / component.file}: a component's graph is not listed among the files")
    if not allow_ungated:
        _require_gated(root, manifest)
    return manifest


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
            "Quantize again with --eval FILE.jsonl, or load it anyway with --allow-ungated."
        )


def _check_file(path: Path, record: FileRecord, verify: bool) -> None:
    if not path.is_file():
        raise BundleFileError(f"{path} is missing; the manifest lists it with {record.size_bytes} bytes")
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        raise BundleFileError(f"{path} holds {size_bytes} bytes, expected {record.size_bytes}: export it again")
    if verify and (found := sha256_of(path)) != record.sha256:
        raise BundleFileError(f"{path} was altered: sha256 {found[:12]}, expected {record.sha256[:12]}")


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Record every file of `directory` in the manifest, write it, and return it."""
    files = {
        path.name: FileRecord(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    sealed = manifest.model_copy(update={"files": files})
    (directory / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return sealed


@contextmanager
def write_aside(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block succeeds, and vanishes when it fails.

    Raises:
        BundleError: `target` exists and is not a bundle, or is one and `overwrite` is False, or cannot be written.
    """
    final = Path(target).resolve()
    if final.exists():
        if not overwrite:
            raise BundleError(f"{target} exists. Choose another -o, or pass --overwrite to replace it.")
        if not (final / MANIFEST).is_file():
            raise BundleError(f"{target} exists and is not a bundle; it is left alone. Choose another -o.")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}. Choose another -o.") from error
    try:
        aside = scratch / "new"
        aside.mkdir()
        yield aside
        _put_in_place(aside, final, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
