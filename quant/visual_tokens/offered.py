"""Which ways to read fewer image tokens a bundle offers."""

from __future__ import annotations

from bundle.image_tokens import gives_tower
from bundle.manifest import Manifest
from quant.visual_tokens.inside.table import METHODS as INSIDE
from quant.visual_tokens.inside.table import missing
from quant.visual_tokens.resize import missing as resize_missing
from quant.visual_tokens.skipping import missing as skipping_missing
from quant.visual_tokens.table import METHODS, RESIZE, SKIPPING


def offered_methods(manifest: Manifest, *, has_segments: bool = True) -> tuple[str, ...]:
    """Return the methods that a request may name; none of a model that shows no image to a decoder.

    Args:
        manifest: Of the bundle.
        has_segments: Whether its segments are opened where it runs.
    """
    if manifest.decoder is None or (manifest.image_prompt is not None and manifest.image_prompt.fills_memory):
        return ()
    lacks_tower = not gives_tower(manifest.components[manifest.graph("vision_encoder")])
    lacks_text = has_wide_tokens(manifest)
    lacking = {name for name, each in METHODS.items() if each.needs_tower and lacks_tower}
    lacking |= {name for name, each in METHODS.items() if each.needs_text and lacks_text}
    before = (name for name in METHODS if name not in lacking)
    smaller = () if resize_missing(manifest) else (RESIZE,)
    inside = (name for name in INSIDE if has_segments and not missing(name, manifest))
    skipping = () if skipping_missing(manifest) else (SKIPPING,)
    return (*before, *smaller, *inside, *skipping)


def has_wide_tokens(manifest: Manifest) -> bool:
    """Return whether image tokens hold features of several layers, so that no text is like them (Qwen3-VL)."""
    size = manifest.components[manifest.graph("vision_encoder")].outputs[0].shape[-1]
    return manifest.decoder is not None and size != manifest.decoder.hidden_size
