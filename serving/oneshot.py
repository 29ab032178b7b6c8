"""One question or one set of embeddings from a bundle, in this process, without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle.adapters import split_task
from serving.models.client import LocalClient
from serving.protocol import (
    EmbedRequest,
    EmbedResult,
    FinishedEvent,
    FinishReason,
    GenerateRequest,
    ImagePart,
    KVCompression,
    Message,
    SamplingParams,
    TextPart,
    Timings,
    TokenEvent,
    Usage,
    VisionReduction,
)
from serving.settings import EngineSettings


@dataclass(frozen=True)
class Answer:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


async def answer(
    bundle: Path,
    message: Message,
    sampling: SamplingParams,
    threads: int = 0,
    on_text: Callable[[str], None] | None = None,
    vision: VisionReduction | None = None,
    kv: KVCompression | None = None,
    adapter: str = "",
) -> Answer:
    """Load a bundle, answer one message, and unload it.

    Args:
        bundle: A vision-language model's directory; one that failed its quality gate is loaded too.
        message: The question.
        sampling: How tokens are chosen.
        threads: Inside one operator; 0 means one per physical core.
        on_text: Called with each piece of text as it is generated.
        vision: Which image tokens are read; None: all.
        kv: Which rows of the prompt stay in the cache; None: all.
        adapter: Of the bundle's, by name; empty: none.

    Raises:
        BundleError: The bundle is not usable.
        RequestError: The model cannot answer this.
    """
    texts: list[str] = []
    token_ids: list[int] = []
    settings = settings_of_one(threads)
    async with LocalClient([bundle], settings) as client:
        model = (await client.models())[0].name
        request = GenerateRequest("oneshot", model, (message,), sampling, vision=vision, kv=kv, adapter=adapter)
        async for event in client.generate(request):
            if isinstance(event, TokenEvent):
                texts.append(event.text)
                token_ids += event.token_ids
                if on_text:
                    on_text(event.text)
            elif isinstance(event, FinishedEvent):
                finished = event
    return Answer("".join(texts), tuple(token_ids), finished.reason, finished.usage, finished.timings)


async def embed(
    bundle: Path, inputs: tuple[TextPart | ImagePart, ...], threads: int = 0, task: str | None = None
) -> EmbedResult:
    """Load a model that embeds, embed the inputs, and unload it.

    Args:
        bundle: Its directory.
        inputs: At least one.
        threads: Inside one operator; 0 means one per physical core.
        task: Which of its adapters, and behind it what the inputs are, as requests write it; None: its first.

    Raises:
        BundleError: The bundle is not usable.
        RequestError: The model does not embed, or an input is not usable.
    """
    async with LocalClient([bundle], settings_of_one(threads)) as client:
        model = (await client.models())[0].name
        name, kind = (None, None) if task is None else split_task(task)
        kinds = () if kind is None else (kind,) * len(inputs)
        return await client.embed(EmbedRequest("oneshot", model, inputs, input_types=kinds, task=name))


def settings_of_one(threads: int) -> EngineSettings:
    """Return settings of a process that ends soon: trying which engine is faster takes longer than it saves."""
    return EngineSettings(max_sequences=1, intra_threads=threads, allow_ungated=True, encoder_runtime="onnxruntime")
