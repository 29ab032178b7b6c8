"""A server's settings within what the engines of a bundle were built for."""

from __future__ import annotations

import logging

from bundle.directory import Bundle
from bundle.errors import SettingsError
from runtime.tensorrt.bounds import EngineBounds, try_bounds
from serving.settings import EngineSettings

logger = logging.getLogger(__name__)


def within_engines(bundle: Bundle, settings: EngineSettings) -> EngineSettings:
    """Return the settings by which a bundle is served: within its engines where it has some, else as they are.

    What nobody set is lowered to what the engines take, and told; what somebody set is not changed in silence.

    Raises:
        SettingsError: A setting asks for more than the engines take.
    """
    bounds = try_bounds(bundle, settings)
    if bounds is None:
        if settings.engines:
            logger.warning("%s runs without engines: engine.engines names none of it", bundle.name)
        return settings
    lowered = _lowered(bundle, settings, bounds)
    logger.info("%s: %s%s", bundle.name, bounds, "".join(f"; {name} is {value}" for name, value in lowered.items()))
    return settings.model_copy(update=lowered)


def _lowered(bundle: Bundle, settings: EngineSettings, bounds: EngineBounds) -> dict[str, int]:
    """Return the settings that change, by name."""
    has_decoder = bundle.manifest.decoder is not None
    asked: dict[str, tuple[int, int | None, str]] = {
        "vision_batch_tiles": (settings.vision_batch_tiles, bounds.max_images, "--max-images"),
    }
    if has_decoder:
        asked["max_sequences"] = settings.max_sequences, bounds.max_batch, "--max-batch"
        asked["prefill_chunk_tokens"] = settings.chunk_tokens, bounds.max_prompt_tokens, "--max-prompt-tokens"
    else:
        asked["text_batch_rows"] = settings.text_batch_rows, bounds.max_batch, "--max-batch"
    lowered = {}
    for name, (wanted, most, option) in asked.items():
        if most is None or wanted <= most:
            continue
        if getattr(settings, name) is not None and name in settings.model_fields_set:
            raise SettingsError(
                f"engine.{name} {wanted} is more than the engines of {bounds.folder} take, {most}. Lower it, or build "
                f"them again with: pocketvlm compile {bundle.directory} -o {bounds.folder} {option} {wanted}"
            )
        lowered[name] = most
    if has_decoder and settings.context_tokens != bounds.cache_rows:
        if settings.context_tokens is not None:
            raise SettingsError(
                f"engine.context_tokens {settings.context_tokens} is not what the engines of {bounds.folder} were "
                f"built for, {bounds.cache_rows}: an engine has one length of cache. Leave it out, or build again: "
                f"pocketvlm compile {bundle.directory} -o {bounds.folder} --cache-rows {settings.context_tokens}"
            )
        lowered["context_tokens"] = bounds.cache_rows
    return lowered
