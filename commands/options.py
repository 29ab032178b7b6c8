"""Arguments and options that several subcommands share, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bundle.errors import MachineError

BundleArgument = Annotated[Path, typer.Argument(help="A bundle directory.", show_default=False)]
ImageOption = Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads per operator; 0 means one per physical core.")]


def read_image(path: Path) -> bytes:
    """Return what an image file holds, not yet decoded.

    Raises:
        MachineError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from error
