"""In which numbers a graph computes, and which cards have products of them."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.errors import SettingsError
from bundle.manifest import ComponentName, Manifest

_TURING = 75


def is_half(manifest: Manifest, name: ComponentName) -> bool:
    """Return whether a graph computes in float16: variants for TensorRT do, whatever their codes, fp32 aside."""
    return manifest.target == "tensorrt" and manifest.components[name].scheme != "fp32"


def check_products(manifest: Manifest, capabilities: Sequence[int]) -> None:
    """Check that cards have the products of a bundle's graphs, before a graph is read.

    TensorRT-RTX 1.7.1 builds for Turing what computes in float16, beside codes of 8 bits too. Of float32 its builder
    says "FP32 GEMM is not supported", of 4 bits "HW-specific datatypes: int4".

    Args:
        manifest: Of the bundle.
        capabilities: Of cards, as TensorRT counts them.

    Raises:
        SettingsError: A card of 7.5 lacks them.
    """
    if _TURING not in capabilities:
        return
    for name, component in manifest.components.items():
        has_four_bits = component.scheme == "int4"
        if component.role == "embed_tokens" or (is_half(manifest, name) and not has_four_bits):
            continue  # a table holds no product
        lacking = "weights of 4 bits" if has_four_bits else "float32 products"
        raise SettingsError(
            f"--compute-capability 7.5: {component.file} has {lacking}, which TensorRT-RTX builds for 8.0 and newer "
            "alone. Take a variant of pocketvlm quantize --target tensorrt --weights fp16, or int8"
        )
