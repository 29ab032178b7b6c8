"""How graphs run on this machine: provider, threads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bundle.manifest import Manifest, Target
from runtime.limits import Limits

Provider = Literal["cpu", "cuda"]
EncoderRuntime = Literal["auto", "onnxruntime", "openvino"]
DeviceRuntime = Literal["cuda", "tensorrt", "tensorrt-rtx"]

DEFAULT_CONTEXT_TOKENS = 4096
"""Capacity of a slot where the model would take more: a tiled image of SmolVLM is about 1,100 tokens, and a board
shares this memory with everything else. Only the pages that answers reach become resident."""

DEFAULT_CHUNK_TOKENS = 256
"""Tokens of a prompt in one run: its activations stay in a core's cache, and answers that run beside it wait little."""

DEFAULT_DEVICE_CHUNK_TOKENS = 1024
"""On a GPU a chunk takes as long as its operators take to be launched, 256 tokens about as long as 512."""

DEFAULT_VISION_TILES = 4
"""Images or tiles in one run of a vision encoder; bounds its activation memory."""


MOST_SPIN_US = 10_000
"""Longer than any gap between two operators of a run."""


class RuntimeSettings(BaseModel):
    """Settings of every session.

    Attributes:
        provider: Where graphs run.
        intra_threads: Threads inside one operator; 0 means one per physical core, or per core of a container's limit.
        spin_us: How long an operator's threads look for the next one's work before they sleep, in microseconds, and
            only while a run lasts; 0: they sleep at once. Lower latency on a machine of one's own, wasted power and
            cores on any other.
        encoder_runtime: What runs vision and text encoders on a CPU. "auto": whichever is faster here, by measurement
            when a model is loaded, where OpenVINO is installed. It computes in bfloat16 what is not int8 of a
            quantized encoder, where the processor can.
        device_runtime: Which of ONNX Runtime's providers runs graphs on a device: CUDA's own kernels, or TensorRT's,
            which build an engine when a graph is first opened and take variants of `quantize --target tensorrt`.
        engines: Folders of TensorRT engines (`pocketvlm compile`); one that was built of a bundle runs its graphs on
            the device, in the place of ONNX Runtime.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Provider = "cpu"
    intra_threads: int = Field(default=0, ge=0)
    spin_us: int = Field(default=100, ge=0, le=MOST_SPIN_US)
    encoder_runtime: EncoderRuntime = "onnxruntime"
    device_runtime: DeviceRuntime = "cuda"
    engines: tuple[Path, ...] = ()

    def limits(self, manifest: Manifest) -> Limits:
        """Return the largest runs that a bundle's graphs are asked for: one sequence, where nobody serves more."""
        rows = DEFAULT_CONTEXT_TOKENS if manifest.decoder is None else manifest.decoder.max_positions
        return Limits(min(rows, DEFAULT_CONTEXT_TOKENS), 1, DEFAULT_CHUNK_TOKENS, DEFAULT_VISION_TILES)


def provider_of(target: Target) -> Provider:
    """Return where a variant made for a target is run to be measured: TensorRT's builds its engines on the board."""
    return "cuda" if target == "cuda" else "cpu"


def chunk_tokens_of(provider: Provider) -> int:
    """Return the most tokens of a prompt in one run where nobody says otherwise."""
    return DEFAULT_CHUNK_TOKENS if provider == "cpu" else DEFAULT_DEVICE_CHUNK_TOKENS
