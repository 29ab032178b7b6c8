"""How an engine runs on this machine: slots, threads, limits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_CONTEXT_TOKENS = 4096
"""Cache capacity of a slot where the model would take more: a tiled image of SmolVLM is about 1,100 tokens, and a
board shares this memory with everything else. Only the pages that answers reach become resident."""


class EngineSettings(BaseModel):
    """Settings of every model that a client loads; read once, passed explicitly.

    Attributes:
        max_sequences: Cache slots per generative model: the largest decode batch.
        context_tokens: Cache rows per slot. None: the model's own limit, at most `DEFAULT_CONTEXT_TOKENS`.
        max_waiting: Requests per model that may wait for a slot; one more is refused.
        prefill_chunk_tokens: Prompt tokens run between two decode steps; smaller keeps running answers smoother.
        vision_batch_tiles: Images or tiles in one run of a vision encoder; bounds its activation memory.
        text_batch_rows: Texts in one run of a text encoder.
        image_cache_bytes: Bytes of image features kept for reuse, per model; 0 keeps none.
        preprocess_threads: Threads that decode images, fill templates and tokenize.
        intra_threads: Threads inside one operator; 0 means one per physical core, or per core of a container's limit.
        allow_spinning: Let idle operator threads spin: lower latency on a machine of one's own, and wasted power and
            cores on any other.
        provider: Where graphs run.
        verify_digests: Compare every file with its recorded digest at start (reads the weights once).
        check_golden: Replay the canary recorded at export before serving.
        allow_ungated: Load a variant whose quality gate failed, or whose quality was never measured on samples.
        stall_timeout_s: An engine that has work and finishes no step for so long is reported as not ready.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sequences: int = Field(default=4, ge=1, le=256)
    context_tokens: int | None = Field(default=None, ge=2)
    max_waiting: int = Field(default=64, ge=0)
    prefill_chunk_tokens: int = Field(default=512, ge=1)
    vision_batch_tiles: int = Field(default=4, ge=1)
    text_batch_rows: int = Field(default=32, ge=1)
    image_cache_bytes: int = Field(default=64 << 20, ge=0)
    preprocess_threads: int = Field(default=2, ge=1)
    intra_threads: int = Field(default=0, ge=0)
    allow_spinning: bool = False
    provider: Literal["cpu", "cuda"] = "cpu"
    verify_digests: bool = True
    check_golden: bool = True
    allow_ungated: bool = False
    stall_timeout_s: float = Field(default=120.0, gt=0)
