"""A bundle's manifest as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bundle.dims import DecoderDims, EmbedderDims
from bundle.gates import Gate, reasons
from bundle.manifest import Manifest


def summary(bundle: Path, manifest: Manifest) -> Iterator[RenderableType]:
    """Yield what to print: title, components, cache, gates."""
    yield f"[bold]{escape(manifest.name)}[/bold]  {manifest.model_type}, {manifest.task}, {manifest.dialect} dialect"
    yield f"from {manifest.source}, in {bundle}"
    yield _components(manifest)
    if manifest.decoder:
        kv_kib = manifest.state_bytes_per_token / 1024
        cache = f"{manifest.cache_dtype}, {kv_kib:.1f} KiB per token and sequence"
        if fixed_bytes := manifest.state_bytes_per_sequence:
            cache += f", and {fixed_bytes / 1024:.1f} KiB per sequence however long it is"
        yield f"context {manifest.decoder.max_positions} tokens; cache {cache}"
        yield from _adapters(manifest.decoder)
    if manifest.embedder and manifest.reads_pairs:
        yield "scores of a query and a document, read together: the chance of yes, of yes and no"
    elif manifest.embedder:
        yield from _vectors(manifest.embedder)
    if manifest.image_vectors:
        sizes = ", ".join(map(str, manifest.image_vectors.sizes))
        yield f"vectors of {sizes} numbers of images alone; texts are not read"
    if manifest.segments:
        layers = ", ".join(f"{part.first_layer}-{part.end_layer - 1}" for part in manifest.segments)
        yield f"prompts may run in {len(manifest.segments)} segments, of the layers {layers}"
    if manifest.gates:
        yield _gates(manifest.gates)
    for reason, names in reasons(manifest.unmeasured).items():
        yield escape(f"not measured: {names}: {reason}")
    if manifest.is_gated is False and all(gate.basis == "canary" for gate in manifest.gates):
        yield "[red]quality was never measured on samples[/red]; serve refuses it without --allow-ungated"


def _vectors(dims: EmbedderDims) -> Iterator[str]:
    yield f"vectors of {', '.join(map(str, dims.sizes))} numbers from the states of: {dims.pooling}"
    if dims.late_size:
        yield f"or one of {dims.late_size} numbers for each token, where a request asks for it"
    if dims.adapters:
        names = ", ".join(dims.adapter_names)
        yield escape(f"adapters that a request's task chooses, the first where it says none: {names}")


def _adapters(dims: DecoderDims) -> Iterator[str]:
    if not dims.adapters:
        return
    told = ", ".join(
        f"{each.name} (rank {each.rank}, {each.num_layers} linear layers{', vision' if each.changes_vision else ''})"
        for each in dims.adapters
    )
    yield escape(f"adapters that a request chooses as models: {told}")


def _components(manifest: Manifest) -> Table:
    table = Table("component", "scheme", "weights", "choice")
    for name, component in manifest.components.items():
        table.add_row(name, component.scheme, megabytes(component.weight_bytes), component.detail)
    table.add_row("[bold]all[/bold]", "", megabytes(manifest.weight_bytes), "")
    return table


def _gates(gates: tuple[Gate, ...]) -> Table:
    table = Table("gate", "measured", "limit", "n", "verdict")
    for gate in gates:
        sign = ">=" if gate.direction == "min" else "<="
        verdict = "passed" if gate.passed else "[red]failed[/red]"
        limit = f"{sign} {gate.limit:g}{' (yours)' if gate.is_overridden else ''}"
        table.add_row(gate.name, f"{gate.value:.4f}", limit, str(gate.n), verdict)
    return table


def megabytes(size_bytes: int) -> str:
    """Return a size in MB (10^6 bytes) with one decimal."""
    return f"{size_bytes / 1e6:.1f} MB"
