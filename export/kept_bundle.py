"""A bundle whose decoder keeps a GGUF's blocks, judged by the fp32 bundle of the same file.

The weights of the two are the same numbers. What differs is the arithmetic: MatMulNBits rounds activations to int8, and
that is what the gates hold. The fp32 bundle lies beside the other while that is made, and is deleted then.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from bundle.directory import MANIFEST, Bundle, open_bundle, seal, write_aside
from bundle.errors import UnsupportedConfigError
from bundle.machine import this_machine
from bundle.manifest import Component, ComponentName, Manifest
from bundle.report import ComponentReport, EvaluationFacts, Report, write_report
from export.architectures import load_family
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint, located, read_decoder, with_its_tower
from export.family import Family
from export.gguf_blocks import KEPT_KINDS
from export.gguf_decoder import GgufTensor
from export.kept_blocks import KeptLayers, keep_blocks
from graphs.sharing import share_weights
from graphs.store import open_graph, save_graph, weight_bytes
from quant.quality.evaluation import Evaluation, Measured
from quant.quality.gate import MIXED, judge_all, measure, require_measurable, unmeasured_gates
from quant.quality.parity import Parity, canary_parity
from quant.writing import lowering_of
from runtime.settings import RuntimeSettings

Say = Callable[[str], None]


def export_kept(
    checkpoint: str | Path,
    output: Path,
    decoder_gguf: Path,
    *,
    name: str | None = None,
    samples: Callable[[Bundle], Evaluation] | None = None,
    check: Callable[[Family, str], None] | None = None,
    overwrite: bool = False,
    progress: Say | None = None,
) -> Manifest:
    """Write a bundle whose decoder holds the blocks of a llama.cpp file, and return its manifest.

    Args:
        checkpoint: A local folder or a hub id: config, tokenizer, vision tower.
        output: The bundle's folder; appears whole or not at all.
        decoder_gguf: The decoder. Types that MatMulNBits cannot hold are restored to float32.
        name: The served model id; the checkpoint's last path component by default.
        samples: Gives what quality is measured on, of the fp32 bundle; None: only the recorded run is compared, and
            nothing is gated.
        check: Given the family and the row of limits before anything is built; raises where samples cannot pass them.
        overwrite: Replace a bundle that stands at `output`.
        progress: Called with a line at each step.

    Raises:
        CheckpointError: As `export.exporter.export_checkpoint`.
        UnsupportedConfigError: The file holds no block that can be kept.
        BundleError: `output` exists.
    """
    started, say = time.monotonic(), progress or (lambda line: None)
    folder, _ = located(str(checkpoint), say)
    family = load_family(with_its_tower(Checkpoint.open(folder), lambda line: None).config)
    tensors = _tensors(family, folder, decoder_gguf)
    if check is not None:
        bits = {KEPT_KINDS.get(tensor.kind.name) for tensor in tensors.values()} - {None}
        check(family, "int8" if bits == {8} else MIXED)
    with write_aside(output, overwrite=overwrite) as aside:
        parent = aside.with_name("fp32")
        export_checkpoint(checkpoint, parent, name=name, decoder_gguf=decoder_gguf, progress=progress)
        making = _Making(open_bundle(parent), aside, decoder_gguf.name, say)
        variant = seal(aside, making.write(tensors))
        evaluation = samples(making.parent) if samples else None
        judged = making.judge(variant, evaluation, started)
        return seal(aside, judged, unchanged=variant.manifest.files).manifest


def limits_row(kept: Manifest) -> str:
    """Return the row of `quant.quality.gate.LIMITS` that a kept bundle is held to: by what it holds, as any variant."""
    held = {part.scheme for part in kept.components.values()} - {"fp32"}
    return "int8" if held == {"int8-weight-only"} else MIXED


def _tensors(family: Family, checkpoint: Path, file: Path) -> dict[str, GgufTensor]:
    """Return the file's tensors by the names of the graphs' weights, a tied one under both."""
    found = read_decoder(file, family, checkpoint)
    kinds = Counter(tensor.kind.name for tensor in found.values())
    if not kinds.keys() & set(KEPT_KINDS):
        raise UnsupportedConfigError(
            f"{file.name} holds {', '.join(kinds)}, and kept are blocks of {', '.join(KEPT_KINDS)}; export it without "
            "--keep-quantized"
        )
    return {**{name: found[other] for name, other in family.stand_ins().items() if other in found}, **found}


@dataclass(frozen=True)
class _Making:
    """A kept bundle on its way.

    Attributes:
        parent: The fp32 bundle of the same file.
        aside: Where the kept one is written.
        file: The GGUF's name.
        say: Told of each step.
    """

    parent: Bundle
    aside: Path
    file: str
    say: Say

    def write(self, tensors: Mapping[str, GgufTensor]) -> Manifest:
        """Write graphs and the parent's other files, and return the manifest without its gates."""
        parts = self.parent.manifest.components
        components = {name: self._write_graph(name, part, tensors) for name, part in parts.items()}
        files = sorted((part.file for part in parts.values()), key=lambda file: not file.startswith("decoder."))
        saved = share_weights(self.aside, files)
        rewritten = {*files, *(f"{file}.data" for file in files), MANIFEST}
        for file in self.parent.manifest.files.keys() - rewritten:
            shutil.copyfile(self.parent.path(file), self.aside / file)
        shared = {
            name: part.model_copy(update={"weight_bytes": part.weight_bytes - saved.get(part.file, 0)})
            for name, part in components.items()
        }
        return self.parent.manifest.model_copy(update={"components": shared})

    def _write_graph(self, name: ComponentName, part: Component, tensors: Mapping[str, GgufTensor]) -> Component:
        model = open_graph(self.parent.path(part.file))
        kept = keep_blocks(model, tensors)
        lowering_of(self.parent, "cpu").apply(model, part, part.phase)
        save_graph(model, self.aside / part.file)
        self._tell(name, kept)
        return part.model_copy(
            update={"scheme": kept.scheme, "detail": kept.detail, "weight_bytes": weight_bytes(model)}
        )

    def _tell(self, name: ComponentName, kept: KeptLayers) -> None:
        for line in kept.detail.splitlines():
            self.say(f"{name}: {line}")
        if kept.restored:
            self.say(f"{name}: restored are {', '.join(f'{layer} ({kind})' for layer, kind in kept.restored.items())}")

    def judge(self, variant: Bundle, evaluation: Evaluation | None, started: float) -> Manifest:
        """Measure the kept bundle beside its parent, write the report and return the manifest with its gates."""
        settings, row = RuntimeSettings(), limits_row(variant.manifest)
        if evaluation is not None:
            require_measurable(evaluation, row, is_dual=False, has_limits=False)
        parity = canary_parity(variant, settings)
        measured = measure(self.parent, variant, evaluation, self.say, settings) if evaluation else None
        judged = variant.manifest.model_copy(
            update={
                "gates": judge_all(parity, measured, row),
                "unmeasured": unmeasured_gates(measured, evaluation.no_accuracy if evaluation else ""),
            }
        )
        write_report(self._report(judged, parity, measured, evaluation, time.monotonic() - started), self.aside)
        return judged

    def _report(
        self,
        judged: Manifest,
        parity: Mapping[ComponentName, Parity],
        measured: Measured | None,
        evaluation: Evaluation | None,
        seconds: float,
    ) -> Report:
        found, parts = measured or Measured(), self.parent.manifest.components
        missing = () if measured else ("quality on samples: no evaluation was given",)
        return Report(
            parent=self.parent.name,
            parent_sha256=judged.source_sha256,
            weights=f"kept from {self.file}",
            fp32_bytes=self.parent.manifest.weight_bytes,
            weight_bytes=judged.weight_bytes,
            components={
                name: ComponentReport(
                    scheme=part.scheme,
                    choices=tuple(part.detail.splitlines()),
                    fp32_bytes=parts[name].weight_bytes,
                    weight_bytes=part.weight_bytes,
                    canary_cosine=parity[name].cosine,
                    canary_max_abs=parity[name].max_abs,
                )
                for name, part in judged.components.items()
            },
            evaluation=EvaluationFacts(source=evaluation.source, num_samples=evaluation.num_samples)
            if evaluation
            else None,
            **{part.name: getattr(found, part.name) for part in fields(found)},
            gates=judged.gates,
            unmeasured=judged.unmeasured,
            not_measured=(*missing, "speed: measure it with pocketvlm bench on the machine that will serve"),
            machine=this_machine(("onnxruntime", "numpy")),
            seconds=round(seconds, 2),
        )
