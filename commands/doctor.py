"""`pocketvlm doctor`: what this machine can run, whether a bundle fits a memory, what a TensorRT can read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.options import JsonOption, read_size, usage_errors
from commands.terminal import EXIT_FAILED, console, print_json


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle: whether it fits the memory that is free here, or that of --device-memory.",
            show_default=False,
        ),
    ] = None,
    tensorrt: Annotated[
        str | None,
        typer.Option(
            metavar="X.Y",
            help="Say of each graph of the bundle instead whether the parser of this TensorRT takes it, such as 10.3, "
            "10.15, 11. Default: none.",
            show_default=False,
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the bundle may take on the device, such as 6GiB: what is available there beside the "
            "system. Default: what is free here.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Where the bundle would run. Default: what it was made for.", show_default=False),
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Sequences decoded together. Default: 8, as serve has it.", show_default=False
        ),
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens per sequence. Default: the model's own, at most 4096.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine can run, or whether a bundle fits; exit code 1 where it cannot, or does not."""
    of_memory = {
        "--device-memory": device_memory,
        "--provider": provider,
        "--max-sequences": max_sequences,
        "--context-tokens": context_tokens,
    }
    given = [name for name, value in of_memory.items() if value is not None]
    if tensorrt is not None and given:
        raise typer.BadParameter(f"{given[0]} has no part in --tensorrt, which says what a parser takes; leave it out")
    if bundle is None:
        if tensorrt is not None or given:
            raise typer.BadParameter(
                f"{(*given, '--tensorrt')[0]} is of a bundle; name one too: doctor BUNDLE --device-memory 6GiB, or "
                "--tensorrt 10.3"
            )
        _of_this_machine(as_json)
    elif tensorrt is not None:
        _read_by_tensorrt(bundle, tensorrt, as_json)
    else:
        _of_memory(
            bundle,
            {
                "engine.provider": provider,
                "engine.max_sequences": max_sequences,
                "engine.context_tokens": context_tokens,
            },
            device_memory,
            as_json,
        )


def _of_memory(bundle: Path, flags: dict[str, object], device_memory: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from bundle.directory import open_bundle
    from serving.fitting import fit, lines, provider_for
    from serving.settings_sources import load_settings

    manifest = open_bundle(bundle, verify=False, allow_ungated=True).manifest
    with usage_errors():
        settings = load_settings(flags={**flags, "engine.provider": flags["engine.provider"] or provider_for(manifest)})
        found = fit(
            manifest, settings.engine, None if device_memory is None else read_size(device_memory, "--device-memory")
        )
    if as_json:
        print_json({**asdict(found), "total_bytes": found.budget.total_bytes, "fits": found.fits})
    for line in () if as_json else lines(found):
        console.print(line, soft_wrap=True, markup=False)
    if not found.fits:
        raise typer.Exit(EXIT_FAILED)


def _of_this_machine(as_json: bool) -> None:
    from dataclasses import asdict

    from serving.doctor import diagnose, lines

    found = diagnose()
    if as_json:
        print_json({**asdict(found), "can_serve": found.can_serve})
    else:
        for item in lines(found):
            console.print(item, soft_wrap=isinstance(item, str))
    if not found.can_serve:
        raise typer.Exit(EXIT_FAILED)


def _read_by_tensorrt(bundle: Path, version: str, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.markup import escape

    from bundle.directory import open_bundle
    from graphs.lowering.tensorrt_operators import judge_graph, read_version

    with usage_errors():
        wanted = read_version(version)
    opened = open_bundle(bundle, verify=False, allow_ungated=True)
    found = {
        name: judge_graph(opened.graph_path(name), opened.manifest.always_given(name), wanted)
        for name in opened.manifest.components
    }
    if as_json:
        print_json({name: asdict(verdict) for name, verdict in found.items()})
    for name, verdict in () if as_json else found.items():
        lacking = escape(", ".join(verdict.lacking))
        told = {
            "standard": "taken as it is",
            "plain": f"lacks {lacking}; pocketvlm compile --tensorrt-version {version} writes it without",
            None: f"[red]cannot be written[/red]: lacks {lacking}; {escape(verdict.reason)}",
        }
        console.print(f"{name}: {told[verdict.form]}", soft_wrap=True)
    if any(verdict.form is None for verdict in found.values()):
        raise typer.Exit(EXIT_FAILED)
