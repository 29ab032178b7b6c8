"""What `/v1/models` tells of a bundle, from its manifest alone: no replica needs to be asked."""

from __future__ import annotations

from bundle.manifest import Manifest
from runtime.cache_shape import context_of
from serving.protocol import ModelCard
from serving.settings import EngineSettings


def card_of(manifest: Manifest, settings: EngineSettings) -> ModelCard:
    """Return the public description of a bundle as it is served with some settings."""
    return ModelCard(
        manifest.name,
        manifest.task,
        manifest.model_type,
        {name: component.scheme for name, component in manifest.components.items()},
        manifest.weight_bytes,
        context_of(manifest, settings.context_tokens),
        manifest.gates,
        manifest.is_gated,
        manifest.unmeasured,
    )
