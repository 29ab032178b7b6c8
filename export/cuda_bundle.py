"""A checkpoint written for CUDA at once: its fp32 bundle, and of that a float16 variant as docs/cuda-form.md has it.

The fp32 bundle lies beside the other while that is made and measured, and is deleted then. Who wants other weights,
or both bundles, exports without a target and quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from bundle.directory import Bundle, open_bundle, seal, write_aside
from bundle.manifest import Manifest
from bundle.states import State
from export.architectures import load_family
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint, located, with_its_tower
from export.family import Family
from quant.planning.cliffs import refuse_graphs, refuse_ports
from quant.planning.draft import Options
from quant.quality.evaluation import Evaluation
from quant.quantizer import quantize_bundle

_WEIGHTS: Final = "fp16"
_TARGET: Final = "cuda"


def export_for_cuda(
    checkpoint: str | Path,
    output: Path,
    *,
    name: str | None = None,
    decoder_gguf: Path | None = None,
    samples: Callable[[Bundle], Evaluation] | None = None,
    check: Callable[[Family, str], None] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a checkpoint's float16 bundle for CUDA and return its manifest.

    Args:
        checkpoint: A local folder or a hub id.
        output: The bundle's folder; appears whole or not at all.
        name: The served model id; the checkpoint's last path component by default.
        decoder_gguf: A llama.cpp file whose weights take the place of the checkpoint's decoder.
        samples: Gives what quality is measured on, of the fp32 bundle; None: only the recorded run is compared, and
            nothing is gated.
        check: Given the family and the row of limits before anything is built; raises where samples cannot pass them.
        overwrite: Replace a bundle that stands at `output`.
        progress: Called with a line at each step.

    Raises:
        CheckpointError: As `export.exporter.export_checkpoint`.
        QuantizationError: A weight is beyond float16; or, told before a weight is read, the model has no form for CUDA.
        BundleError: `output` exists.
    """
    say = progress or (lambda line: None)
    if check is not None:
        source = with_its_tower(Checkpoint.open(located(str(checkpoint), say)[0]), say)
        check(load_family(source.config), _WEIGHTS)
    with write_aside(output, overwrite=overwrite) as aside:
        parent, made = aside.with_name("fp32"), aside.with_name("made")
        exported = export_checkpoint(
            checkpoint, parent, name=name, decoder_gguf=decoder_gguf, refuse=_refuse, progress=progress
        )
        variant = quantize_bundle(
            parent,
            made,
            weights=_WEIGHTS,
            options=Options(target=_TARGET),
            evaluation=samples(open_bundle(parent)) if samples else None,
            progress=progress,
        )
        made.rename(aside)
        return seal(aside, variant.model_copy(update={"name": exported.name}), unchanged=variant.files).manifest


def _refuse(name: str, graphs: Sequence[ir.Graph], states: Sequence[State]) -> None:
    inputs = {str(value.name) for graph in graphs for value in graph.inputs}
    refuse_ports(name, inputs, states, _TARGET)
    refuse_graphs(graphs, "contrib", _TARGET)
