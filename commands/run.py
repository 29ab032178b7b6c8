"""`pocketvlm run`: one answer, without a server."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from commands.options import (
    AdapterOption,
    BundleArgument,
    ImageOption,
    JsonOption,
    ThreadsOption,
    check_adapter,
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
        str | None,
        typer.Option(help="Which image tokens are read, with --vision-keep (docs/compression.md). Default: uniform."),
    ] = None,
    vision_keep: Annotated[
        float | None,
        typer.Option(help="Share of each tile's tokens that is read, above 0; 1 reads all. Default: 1."),
    ] = None,
    kv_policy: Annotated[
        str | None,
        typer.Option(
            help="Which rows of the prompt stay in the cache, with --kv-budget (docs/compression.md). Default: snapkv."
        ),
    ] = None,
    kv_budget: Annotated[
        float | None, typer.Option(help="Share of the prompt's rows that stays, above 0; 1 keeps all. Default: 1.")
    ] = None,
    adapter: AdapterOption = "",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer one question about images, in this process."""
    from dataclasses import asdict

    from serving.chat.figures import speed
    from serving.oneshot import answer
    from serving.protocol import ImagePart, KVCompression, Message, SamplingParams, TextPart, VisionReduction

    check_shares(vision_method, vision_keep, kv_policy, kv_budget)
    vision = VisionReduction(vision_method or "uniform", 1.0 if vision_keep is None else vision_keep)
    kv = KVCompression(kv_policy or "snapkv", 1.0 if kv_budget is None else kv_budget)
    if vision.keep < 1 and not image:
        raise typer.BadParameter("--vision-keep says what is read of images, and there is none; leave it out")
    if [prompt, *(image or ())].count("-") > 1:
        raise typer.BadParameter("- stands for standard input, which is read once: for the question or for one --image")
    images = [ImagePart(read_image(file)) for file in image or ()]
    parts: tuple[TextPart | ImagePart, ...] = (*images, TextPart(read_text(prompt, "the question")))
    check_adapter(bundle, adapter)
    tell_of_failed_gates(bundle)
    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed)
    shown = None if as_json else Stripped()
    with usage_errors(), naming(image or ()):
        answered = asyncio.run(answer(bundle, Message("user", parts), sampling, threads, shown, vision, kv, adapter))
    if as_json:
        print_json(asdict(answered))
    else:
        console.print()
        if not answered.text.strip():
            progress("the answer is empty: the model had nothing to say to these words")
        progress(speed(answered.usage, answered.timings))


def check_shares(method: str | None, keep: float | None, policy: str | None, budget: float | None) -> None:
    """Refuse what would change nothing: a way to leave something out, and no word of how much stays."""
    if method is not None and keep is None:
        raise typer.BadParameter(
            f"--vision-method {method} reads all tokens without --vision-keep; give it, such as 0.5"
        )
    if policy is not None and budget is None:
        raise typer.BadParameter(f"--kv-policy {policy} keeps all rows without --kv-budget; give it, such as 0.5")
