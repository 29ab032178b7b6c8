"""`pocketvlm doctor`: what this machine can run."""

from __future__ import annotations

import typer

from commands.options import JsonOption
from commands.terminal import EXIT_FAILED, console, print_json


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine can run; exit code 1 where it cannot serve."""
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
