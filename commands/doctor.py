"""`pocketvlm doctor`: what this machine can run, and what a TensorRT can read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, usage_errors
from commands.terminal import EXIT_FAILED, console, print_json


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="With --tensorrt: the bundle that it shall read.", show_default=False)
    ] = None,
    tensorrt: Annotated[
        str | None,
        typer.Option(
            metavar="X.Y",
            help="Say of each graph of a bundle whether the parser of this TensorRT takes it, such as 10.3, "
            "10.15, 11. Default: this machine is described.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine can run; exit code 1 where it cannot serve, or TensorRT cannot read."""
    if (bundle is None) != (tensorrt is None):
        raise typer.BadParameter("a bundle and --tensorrt X.Y go together: doctor --tensorrt 10.3 BUNDLE")
    if bundle is not None and tensorrt is not None:
        _read_by_tensorrt(bundle, tensorrt, as_json)
    else:
        _of_this_machine(as_json)


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
