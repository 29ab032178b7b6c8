"""What `/v1/models` tells of a bundle, from its manifest alone: no replica needs to be asked."""

from __future__ import annotations

from bundle.manifest import Manifest
from quant.kv.needs import offered_policies
from quant.visual_tokens.offered import offered_methods
from serving.models.input_writer import longest_input
from serving.models.served_cache import served_cache
from serving.protocol import ModelCard
from serving.settings import EngineSettings


def card_of(manifest: Manifest, settings: EngineSettings) -> ModelCard:
    """Return the public description of a bundle as it is served with some settings."""
    cache = served_cache(manifest, settings)
    is_vlm, on_host = manifest.decoder is not None, settings.provider == "cpu"
    vision, kv = settings.vision, settings.kv
    return ModelCard(
        manifest.name,
        manifest.task,
        manifest.model_type,
        {name: component.scheme for name, component in manifest.components.items()},
        manifest.weight_bytes,
        longest_input(manifest, settings) if cache is None else cache.capacity_tokens,
        manifest.gates,
        manifest.is_gated,
        manifest.unmeasured,
        manifest.cache_dtype or None,
        offered_methods(manifest, has_segments=on_host),
        vision if is_vlm and vision.keep < 1 else None,
        offered_policies(manifest) if on_host else (),
        kv if is_vlm and kv is not None and kv.budget < 1 else None,
        manifest.sees,
        manifest.image_prompt is not None and manifest.image_prompt.takes_one_message,
        () if manifest.embedder is None else manifest.embedder.adapter_names,
        () if manifest.decoder is None else manifest.decoder.adapter_names,
    )
