"""An encoder that Optimum or transformers.js exported, made into a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundle.directory import seal, write_aside
from bundle.json_file import printable
from bundle.machine import own_version
from bundle.manifest import Manifest
from export.adopted.adoption import Adoption, Said
from export.adopted.exported import Exported
from export.adopted.folder import HUB_PATTERNS, ExportedGraphs, refuse_generating
from export.adopted.processing import Processing
from export.exporter import checked_name, hub_files, located
from export.settings_file import read_settings

_NOTHING_SAID = Said()


def adopt_export(
    export: str | Path,
    output: Path,
    *,
    name: str | None = None,
    said: Said = _NOTHING_SAID,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write the bundle of an encoder that Optimum or transformers.js exported, and return its manifest.

    What `golden.npz` records are the outputs of the export itself, so that this and every later load compare with them.

    Args:
        export: A folder with `model.onnx`, or with `vision_model.onnx` and `text_model.onnx`, at its top or in `onnx/`,
            and with `config.json`, tokenizer and preprocessing; or a hub id of one.
        output: The bundle's folder; appears whole or not at all.
        name: The served model id; the export's last path component by default.
        said: What it does not tell.
        overwrite: Replace a bundle that stands at `output`.
        progress: Called with a line at each step.

    Raises:
        CheckpointError: A file is missing or broken, or of a kind that is not adopted; its subclasses say which.
        BundleError: `output` exists.
        MachineError: ONNX Runtime is missing.
        GoldenError: The bundle computes something else than the export.
    """
    say = progress or (lambda line: None)
    refuse_generating(str(export), hub_files(str(export)))
    folder, label = located(str(export), say, HUB_PATTERNS, "*/*/*")
    label = printable(label)
    bundle_name = checked_name(name or label.rsplit("/", 1)[-1])
    config = read_settings(folder / "config.json")
    graphs = ExportedGraphs.find(folder)
    exported = Exported(graphs)
    processing = Processing.read(folder, config, sees=exported.sees)
    with write_aside(output, overwrite=overwrite) as aside:
        processing.write(aside)
        adoption = Adoption(graphs, exported, processing, aside, said, say)
        components = adoption.write()
        eos = processing.vocabulary.named_id("eos_token")
        manifest = Manifest(
            name=bundle_name,
            source=label,
            source_sha256=adoption.digest(),
            created_by=f"pocketvlm {own_version()}",
            model_type=str(config.get("model_type")),
            task="dual-encoder" if exported.sees else "text-embedding",
            dialect="contrib",
            components=components,
            dual=adoption.dims(),
            bos_token_id=processing.vocabulary.named_id("bos_token"),
            eos_token_ids=() if eos is None else (eos,),
            template_tokens=processing.vocabulary.template_tokens,
        )
        say("computing digests")
        bundle = seal(aside, manifest)
        adoption.check(bundle)
        return bundle.manifest
