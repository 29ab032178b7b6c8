"""`pocketvlm models`: which checkpoints can be exported, which published systems run, and what proves it."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.options import JsonOption
from commands.terminal import console, print_json

SurveyedOption = Annotated[bool, typer.Option("--surveyed", help="Published systems in place of model types.")]


def models(surveyed: SurveyedOption = False, as_json: JsonOption = False) -> None:
    """List the model types that export knows, what each is made of, and what was reached."""
    from dataclasses import asdict

    from rich.table import Table

    from export.known_models import known_models
    from export.surveyed import surveyed_systems

    if as_json:
        print_json([asdict(row) for row in (surveyed_systems() if surveyed else known_models())])
        return
    if surveyed:
        names = ("system", "reached", "how, or why not")
        rows = [(row.system, row.reached, row.how or row.served_by) for row in surveyed_systems()]
    else:
        names = ("model_type", "reached", "pattern")
        rows = [(row.model_type, row.reached, row.pattern) for row in known_models()]
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
