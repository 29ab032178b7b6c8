"""Whether a bundle's weights were made for where they are about to run."""

from __future__ import annotations

import logging

from bundle.directory import Bundle
from bundle.errors import MachineError
from serving.settings import EngineSettings

logger = logging.getLogger(__name__)


def check_target(bundle: Bundle, settings: EngineSettings) -> None:
    """Refuse weights that the provider has no use for; log those that it runs, but that were chosen for another.

    Float16 on an x86 CPU is such a use: ONNX Runtime 1.31 turns the weights into float32 when it opens the graph and
    computes in float32 (its profile shows no float16 product), so neither time nor memory pays for the lost digits.

    Args:
        bundle: Opened.
        settings: Say where graphs run.

    Raises:
        MachineError: Float16 weights on a CPU.
    """
    manifest = bundle.manifest
    halves = [name for name, component in manifest.components.items() if component.scheme == "fp16"]
    if halves and settings.provider == "cpu":
        raise MachineError(
            f"{bundle.directory}: {', '.join(halves)} hold float16 weights, which a CPU turns back into float32: "
            "no smaller, no faster. Take the bundle it was made from or an int8 variant of that, or set "
            "engine.provider to cuda."
        )
    is_of_tensorrt = settings.provider != "cpu" and (settings.device_runtime != "cuda" or bool(settings.engines))
    if settings.provider != "cpu" and settings.device_runtime != "cuda" and manifest.dialect != "portable":
        raise MachineError(
            f"{bundle.directory} is in the {manifest.dialect} dialect, whose operators TensorRT lacks; export the "
            "checkpoint with --dialect portable and quantize with --target tensorrt, or set engine.device_runtime to "
            "cuda."
        )
    expected = "tensorrt" if is_of_tensorrt else settings.provider
    if not manifest.is_as_exported and manifest.target != expected:
        logger.warning(
            "%s was quantized for %s and runs on %s, where another variant may be faster: see pocketvlm quantize "
            "--target",
            manifest.name,
            manifest.target,
            expected,
        )
