"""The `pocketvlm` command: its subcommands, and how a call of it ends.

Exit codes: 0 done; 1 it could not be done (one line on stderr says why); 2 the command line is wrong;
3 a measured objective or quality gate was missed; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from bundle.errors import PocketVLMError
from bundle.extras import extra_of, install_line
from commands.bench import bench
from commands.demo import demo
from commands.doctor import doctor
from commands.embed import embed
from commands.export import export
from commands.inspect import inspect
from commands.loadtest import loadtest
from commands.quantize import quantize
from commands.report import report
from commands.run import run
from commands.serve import DEPLOY_HELP, SERVE_HELP, serve
from commands.terminal import EXIT_FAILED, EXIT_INTERRUPTED, progress_console

app = typer.Typer(
    name="pocketvlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compact vision-language models from checkpoint to endpoint: export, compress, measure, serve.",
)
app.command()(export)
app.command()(quantize)
app.command()(inspect)
app.command()(report)
app.command()(run)
app.command()(embed)
app.command("deploy", help=DEPLOY_HELP)(serve)
app.command("serve", help=SERVE_HELP)(serve)
app.command()(bench)
app.command()(loadtest)
app.command()(doctor)
app.command()(demo)


def main() -> None:
    """Run the command; turn deliberate errors and missing packages into one line."""
    try:
        app()
    except PocketVLMError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _fail(f"this command needs {error.name}. Install it with: {install_line(extra)}")
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> None:
    progress_console.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
