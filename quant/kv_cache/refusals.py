"""Caches that cannot hold codes: told before anything is computed."""

from __future__ import annotations

from typing import get_args

import onnx_ir as ir

from bundle import tensors
from bundle.errors import MachineError, QuantizationError
from bundle.manifest import Manifest, Target
from bundle.states import CacheScheme, State
from graphs.shared_rows import readers_of_others
from runtime.operators import failure_of
from runtime.providers import CPU

CACHE_SCHEMES: tuple[CacheScheme, ...] = tuple(name for name in get_args(CacheScheme) if name != "float")
_PROBES = ("GroupQueryAttention-{scheme}-cache", "Attention-24-static-cache")
"""What a cache of codes wants of ONNX Runtime; the second is TensorScatter's."""


def coded_states(manifest: Manifest, scheme: str, target: Target) -> tuple[State, ...]:
    """Return a decoder's states with their rows as codes.

    Raises:
        QuantizationError: An unknown scheme, a model without such a cache, or a target that cannot run it.
    """
    known = next((name for name in CACHE_SCHEMES if name == scheme), None)
    if known is None:
        raise QuantizationError(f"--kv-cache {scheme!r}: known are {', '.join(CACHE_SCHEMES)}")
    if manifest.decoder is None or not manifest.states:
        raise QuantizationError(f"--kv-cache {scheme}: {manifest.name} has no decoder, so no cache. Leave it out")
    if manifest.embedder is not None:
        raise QuantizationError(
            f"--kv-cache {scheme}: {manifest.name} answers and embeds by one decoder, whose cache holds floats for "
            "both. Leave --kv-cache out"
        )
    if manifest.dialect != "contrib":
        raise QuantizationError(
            f"--kv-cache {scheme}: {manifest.name} is in the {manifest.dialect} dialect, whose Attention reads floats "
            "alone; export the checkpoint with --dialect contrib"
        )
    if target != "cpu":
        raise QuantizationError(
            f"--kv-cache {scheme} is not for --target {target}: codes there want other kernels, which nobody has "
            "measured. The cache is float16; leave --kv-cache out"
        )
    if fixed := [state for state in manifest.states if state.kind != "rows"]:
        raise QuantizationError(
            f"--kv-cache {scheme}: {manifest.name} keeps {', '.join(state.input for state in fixed[:3])}, of kind "
            f"{fixed[0].kind}; codes are for keys and values, one row a token. Leave --kv-cache out"
        )
    if any(spec.name == tensors.MEMORY_SEEN for part in manifest.components.values() for spec in part.inputs):
        raise QuantizationError(
            f"--kv-cache {scheme}: tokens of {manifest.name}'s answers see all of a prompt beyond their windows, which "
            "kernels for codes have no mask for. Leave --kv-cache out"
        )
    try:
        return tuple(state.coded(known) for state in manifest.states)
    except ValueError as error:
        raise QuantizationError(f"--kv-cache {scheme}: {error}. Take int8") from error


def require_own_rows(decoder: ir.Graph, scheme: str) -> None:
    """Check that every layer of a decoder reads rows that it wrote itself: scales of codes are a layer's.

    Raises:
        QuantizationError: Some read another layer's.
    """
    if readers := readers_of_others(decoder):
        raise QuantizationError(
            f"--kv-cache {scheme}: {len(readers)} layers of the decoder read the rows of others, and codes are built "
            "for rows that one layer reads. Leave --kv-cache out"
        )


def require_operators(scheme: CacheScheme) -> None:
    """Check that this machine's ONNX Runtime runs what a cache of codes is written in.

    Raises:
        MachineError: It does not.
    """
    for probe in (name.format(scheme=scheme) for name in _PROBES):
        if failure := failure_of(probe, CPU):
            raise MachineError(
                f"--kv-cache {scheme}: this ONNX Runtime cannot run {probe}: {failure}. Install the version that "
                "pyproject.toml names; see what this machine has with: pocketvlm doctor"
            )
