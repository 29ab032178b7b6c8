"""`pocketvlm top`: what a running server is doing, live in the terminal; it needs nothing but HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import JsonOption, usage_errors
from commands.terminal import console, print_json

if TYPE_CHECKING:
    from commands.watching import Server, Status

UrlArgument = Annotated[str, typer.Argument(help="A server's URL.", metavar="[URL]")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="An API key, where the server asks for one. Default: the variable POCKETVLM_KEY, or none.",
        envvar="POCKETVLM_KEY",
        show_envvar=False,
        show_default=False,
    ),
]
PeriodOption = Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds between two looks.")]
OnceOption = Annotated[bool, typer.Option("--once", help="Look twice, a period apart, print, and end.")]


def top(
    url: UrlArgument = "http://127.0.0.1:8000",
    key: KeyOption = None,
    period_s: PeriodOption = 1.0,
    once: OnceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show requests, slots, cache rows, tokens a second and memory of a running server; Ctrl-C ends it."""
    from commands.watching import Server

    with usage_errors():
        server = Server(url, key)
    before = server.status()
    if once or as_json:
        _once(before, server, period_s, as_json)
    else:
        _live(before, server, period_s)


def _once(before: Status, server: Server, period_s: float, as_json: bool) -> None:
    from commands.watching import summary, tables

    time.sleep(period_s)
    now = server.status()
    if as_json:
        print_json(summary(now, before))
        return
    for table in tables(now, before):
        console.print(table)


def _live(before: Status, server: Server, period_s: float) -> None:
    from rich.console import Group
    from rich.live import Live

    from bundle.errors import MachineError
    from commands.watching import tables

    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        now = before
        while True:
            try:
                before, now = now, server.status()
                live.update(Group(*tables(now, before)), refresh=True)
            except MachineError as error:  # it may come back
                live.update(Group(*tables(now, now), f"[red]{error}[/red]"), refresh=True)
            time.sleep(period_s)
