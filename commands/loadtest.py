"""`pocketvlm loadtest`: a server under load, held to objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, usage_errors


def loadtest(
    url: Annotated[str, typer.Argument(help="Base URL, e.g. http://127.0.0.1:8000", show_default=False)],
    users: Annotated[
        int, typer.Option(min=1, max=1000, help="Requests in flight; at least one of each kind in --mix.")
    ] = 4,
    duration_s: Annotated[
        float, typer.Option(min=1, max=24 * 3600, help="Seconds measured, after 2 s of warm-up.")
    ] = 30.0,
    mix: Annotated[
        str, typer.Option(help="Users of each kind (chat, embed, classify) relative to the others.")
    ] = "chat=2,embed=1,classify=1",
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="e.g. ttft_p95_ms<500; a missed one is exit code 3; may be repeated. Default: failure_rate<=0."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.html and CSV files. Default: none written.")
    ] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Load a machine other than this one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Load a server with Locust and hold objectives against what it measured."""
    from loadtests.objectives import parse_objectives
    from loadtests.plan import LoadPlan, check_url
    from loadtests.run import run_load_test

    with usage_errors():
        plan = LoadPlan(users=users, duration_s=duration_s, mix=mix)
        parse_objectives(objective or ())
        check_url(url)
    code = run_load_test(
        url, plan, objectives=objective or (), output=output, allow_remote=allow_remote, as_json=as_json
    )
    raise typer.Exit(code)
