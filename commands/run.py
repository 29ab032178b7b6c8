"""`pocketvlm run`: one answer, without a server."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from commands.options import (
    BundleArgument,
    ImageOption,
    JsonOption,
    ThreadsOption,
    naming,
    read_image,
    read_text,
    usage_errors,
)
from commands.terminal import Stripped, console, print_json, progress, tell_of_failed_gates

_OWN = "Default: the model's own."


def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    image: ImageOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 128,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help=f"0: the likeliest token. {_OWN}")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help=f"Share of probability that is kept, above 0. {_OWN}")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help=f"Likeliest tokens kept; 0 keeps all. {_OWN}")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeats a sampled answer. Default: a new one each time.")
    ] = None,
    vision_method: Annotated[
        str, typer.Option(help="Which image tokens are read, with --vision-keep (docs/compression.md).")
    ] = "uniform",
    vision_keep: Annotated[
        float, typer.Option(help="Share of each tile's tokens that is read, above 0; 1 reads all.")
    ] = 1.0,
    kv_policy: Annotated[
        str, typer.Option(help="Which rows of the prompt stay in the cache, with --kv-budget (docs/compression.md).")
    ] = "snapkv",
    kv_budget: Annotated[
        float, typer.Option(help="Share of the prompt's rows that stays, above 0; 1 keeps all.")
    ] = 1.0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer one question about images, in this process."""
    from dataclasses import asdict

    from serving.oneshot import answer, speed
    from serving.protocol import ImagePart, KVCompression, Message, SamplingParams, TextPart, VisionReduction

    if vision_keep < 1 and not image:
        raise typer.BadParameter("--vision-keep says what is read of images, and there is none; leave it out")
    vision, kv = VisionReduction(vision_method, vision_keep), KVCompression(kv_policy, kv_budget)
    images = [ImagePart(read_image(file)) for file in image or ()]
    parts: tuple[TextPart | ImagePart, ...] = (*images, TextPart(read_text(prompt, "the question")))
    tell_of_failed_gates(bundle)
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed)
    shown = None if as_json else Stripped()
    with usage_errors(), naming(image or ()):
        answered = asyncio.run(answer(bundle, Message("user", parts), sampling, threads, shown, vision, kv))
    if as_json:
        print_json(asdict(answered))
    else:
        console.print()
        if not answered.text.strip():
            progress("the answer is empty: the model had nothing to say to these words")
        progress(speed(answered))
