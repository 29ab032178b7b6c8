"""The subcommands, under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.adopt import adopt
from commands.bench import bench
from commands.chat import chat
from commands.compile import compile_engines
from commands.compression import compression
from commands.demo import demo
from commands.doctor import doctor
from commands.embed import embed
from commands.evaluate import evaluate
from commands.export import export
from commands.inspect import inspect
from commands.keys import keys
from commands.loadtest import loadtest
from commands.models import models
from commands.quantize import quantize
from commands.replay import replay
from commands.report import report
from commands.retrieval import ask, index, search
from commands.run import run
from commands.serve import DEPLOY_HELP, SERVE_HELP, serve
from commands.sync import sync
from commands.terminal import console
from commands.top import top

app = typer.Typer(
    name="pocketvlm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 it could not be done; 2 the command line is wrong; 3 a quality gate or an objective "
    "was missed; 130 Ctrl-C, 143 SIGTERM (a server that drained: 0). Each command has --help.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(export)
app.command()(adopt)
app.command()(quantize)
app.command("compile")(compile_engines)
app.command()(inspect)
app.command()(models)
app.command()(report)
app.command()(evaluate)
app.command()(compression)
app.command()(run)
app.command()(chat)
app.command()(embed)
app.command()(index)
app.command()(search)
app.command()(ask)
app.command("serve", help=SERVE_HELP)(serve)
app.command("deploy", help=DEPLOY_HELP)(serve)
app.add_typer(keys)
app.command()(replay)
app.command()(sync)
app.command()(bench)
app.command()(loadtest)
app.command()(top)
app.command()(doctor)
app.command()(demo)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from bundle.machine import own_version

        console.print(f"pocketvlm {own_version()}")
        raise typer.Exit


@app.callback()
def pocketvlm(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Compact vision-language models from checkpoint to endpoint: export, compress, measure, serve."""
