"""IMA: image tokens skip the feed-forwards of some layers, and are there again behind each.

Shukor and Cord, "Implicit Multimodal Alignment", NeurIPS 2024 (arXiv 2405.16700; the
authors' code calls it `onlycontext_skip_ffn`): hidden states of image tokens change little from layer to
layer, so that a feed-forward may be left out for them, while attention reads and writes their keys and values as ever.
No token is dropped: a prompt has as many rows as before, at its positions, in every layer.

Where we differ: the authors' code skips for the whole context, text and image alike, in every n-th layer behind the
first ones; the paper speaks of perceptual tokens, and so it is here. Which layers may be skipped is said at export, and
how many of them by a request: the last ones first.
"""

from __future__ import annotations

import hashlib

from bundle import tensors
from bundle.manifest import Manifest
from quant.visual_tokens.table import check_keep


def num_skippable(manifest: Manifest) -> int:
    """Return how many layers of a bundle's decoder image tokens may skip."""
    if manifest.decoder is None:
        return 0
    inputs = manifest.components[manifest.graph("decoder", "prompt")].inputs
    sizes = (spec.shape[-1] for spec in inputs if spec.name == tensors.FULL_LAYERS)
    return next((size for size in sizes if isinstance(size, int)), 0)


def missing(manifest: Manifest) -> str:
    """Return why image tokens of a bundle skip nothing, and what to do about it; empty where they can."""
    if num_skippable(manifest):
        return ""
    return (
        f"lets image tokens skip feed-forwards, and {manifest.name} was exported without layers where they may: "
        "pocketvlm export CHECKPOINT -o BUNDLE --skip-visual LAYERS"
    )


def num_skipped(manifest: Manifest, keep: float) -> int:
    """Return how many layers image tokens skip, the last of those that they may.

    Args:
        manifest: Of a bundle that has some.
        keep: Share of these layers that they run through in full, in (0, 1].

    Raises:
        ParameterError: No such share.
    """
    check_keep(keep)
    num = num_skippable(manifest)
    return num - round(keep * num)


def skipped_key(key: bytes, num_layers: int) -> bytes:
    """Return the key of an image, by which rows are shared, where its tokens skip so many layers."""
    return hashlib.sha256(b"skipped" + num_layers.to_bytes(4, "big") + key).digest()
