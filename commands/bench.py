"""`pocketvlm bench`: what a bundle costs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.options import BundleArgument, JsonOption, ThreadsOption, usage_errors
from commands.terminal import console, print_json, progress


def bench(
    bundle: BundleArgument,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, max=64, help="Sequences or images at once; may be repeated. Default: 1 and 8."),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Tokens of the prefill, and cached before decoding.")
    ] = 128,
    output_tokens: Annotated[int, typer.Option(min=2, max=1 << 20, help="Tokens of an answer, at most.")] = 32,
    image_px: Annotated[
        int, typer.Option(min=16, max=4096, help="Pixels, width and height of the image before the first token.")
    ] = 512,
    repeats: Annotated[
        int, typer.Option(min=3, max=100_000, help="Counted runs of each measurement, at most; 10 more warm it up.")
    ] = 30,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput and memory of a bundle on this machine."""
    from loadtests.latency import BenchmarkPlan, print_benchmark, run_benchmark

    plan = BenchmarkPlan(
        batch_sizes=tuple(batch_size or (1, 8)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        image_px=image_px,
        repeats=repeats,
        threads=threads,
        allow_ungated=True,
    )
    with usage_errors():
        report = run_benchmark(bundle, plan, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        print_benchmark(report, console)
