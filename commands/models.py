"""`pocketvlm models`: which checkpoints can be exported, and what proves it."""

from __future__ import annotations

from commands.options import JsonOption
from commands.terminal import console, print_json


def models(as_json: JsonOption = False) -> None:
    """List the model types that export knows, what each is made of, and what was reached."""
    from dataclasses import asdict

    from rich.table import Table

    from export.known_models import known_models

    rows = known_models()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table("model_type", "reached", "pattern", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.model_type, row.reached, row.pattern)
    console.print(table)
