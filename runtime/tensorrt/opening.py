"""The engine of a bundle's graph, where a folder of engines was named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.directory import Bundle
from bundle.engines import ENGINES, EngineIndex, read_engines, require_fresh
from bundle.errors import BundleFileError
from bundle.manifest import ComponentName, TensorSpec
from bundle.states import ROWS
from runtime.settings import RuntimeSettings
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.engine_graph import EngineGraph
from runtime.tensorrt.library import open_library
from runtime.tensorrt.profiles import Limits, profiles_of


def try_engine(bundle: Bundle, name: ComponentName, settings: RuntimeSettings) -> EngineGraph | None:
    """Return the engine of a graph; None where no folder of engines of this bundle was named, or graphs run on a CPU.

    Raises:
        BundleFileError: The folder lacks the graph's engine, or it is stale.
        MachineError: TensorRT is missing, or the engine is of another card or version.
    """
    found = folder_of(bundle, settings)
    if found is None:
        return None
    folder, index = found
    record = index.engines.get(name)
    if record is None:
        raise BundleFileError(
            f"{folder} holds no engine of {name}, only of {', '.join(index.engines) or 'nothing'}. Go on with: "
            f"pocketvlm compile {bundle.directory} -o {folder}"
        )
    require_fresh(bundle, folder, name, record)
    _require_sizes(bundle, folder, name, index)
    return EngineGraph(Engine(open_library(record.key.builder), folder / record.file, record), settings.provider)


def _require_sizes(bundle: Bundle, folder: Path, name: ComponentName, index: EngineIndex) -> None:
    """Check that an engine takes what the folder's index says; older folders say too little.

    Raises:
        BundleFileError: It does not.
    """
    if index.max_batch is None or index.max_prompt_tokens is None or index.max_images is None:
        return
    limits = Limits(index.cache_rows, index.max_batch, index.max_prompt_tokens, index.max_images, index.image_sizes_px)
    manifest, record = bundle.manifest, index.engines[name]
    if list(record.key.profiles) != [dict(each) for each in profiles_of(manifest, manifest.components[name], limits)]:
        raise BundleFileError(
            f"{folder / record.file} was built for other sizes than {folder / ENGINES} says: a build was ended before "
            f"it was done. Go on with: pocketvlm compile {bundle.directory} -o {folder}"
        )


def with_rows(specs: Sequence[TensorSpec], bundle: Bundle, settings: RuntimeSettings) -> list[TensorSpec]:
    """Return inputs or outputs as an engine has them, whose cache is of one length."""
    found = folder_of(bundle, settings)
    if found is None:
        return list(specs)
    return fixed(specs, {ROWS: found[1].cache_rows})


def fixed(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> list[TensorSpec]:
    """Return inputs or outputs with numbers in the place of some free sizes."""

    def size_of(size: int | str) -> int | str:
        return sizes.get(size, size) if isinstance(size, str) else size

    return [spec.model_copy(update={"shape": tuple(map(size_of, spec.shape))}) for spec in specs]


def folder_of(bundle: Bundle, settings: RuntimeSettings) -> tuple[Path, EngineIndex] | None:
    """Return the folder of engines that settings name for a bundle, and its index; None where they name none.

    Raises:
        BundleFileError: A folder is named that holds no engines, or none holds those of a bundle that was made for
            engines and would run without.
    """
    if settings.provider == "cpu" or not settings.engines:
        return None
    indices = {folder: read_engines(folder) for folder in settings.engines}
    for folder, index in indices.items():
        if index.bundle == bundle.name:
            return folder, index
    if bundle.manifest.dialect == "portable" and settings.device_runtime == "cuda":
        held = ", ".join(f"{folder} (of {index.bundle})" for folder, index in indices.items())
        raise BundleFileError(
            f"engine.engines: {held}: none of {bundle.name}, whose graphs would run without. Build them with: "
            f"pocketvlm compile {bundle.directory} -o FOLDER, and name that, or leave engine.engines out"
        )
    return None
