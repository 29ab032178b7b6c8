"""`pocketvlm chat`: a conversation in the terminal, with a bundle or with a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import AdapterOption, ImageOption, ThreadsOption, check_adapter
from commands.terminal import EXIT_FAILED, Stripped, console, progress, progress_console, tell_of_failed_gates
from commands.top import KeyOption

if TYPE_CHECKING:
    from serving.chat.answerer import Answerer
    from serving.chat.session import Voice


def chat(
    source: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|URL",
            help="A bundle directory, or a server that speaks OpenAI's API, such as http://127.0.0.1:8000.",
            show_default=False,
        ),
    ],
    image: ImageOption = None,
    model: Annotated[
        str, typer.Option(help="Of a server's models. Default: the first that chats.", show_default=False)
    ] = "",
    system: Annotated[
        str, typer.Option(help="What the model is told before everything else. Default: nothing.", show_default=False)
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer. Default: the model's own.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="0: the likeliest token. Default: the model's own.")
    ] = None,
    key: KeyOption = None,
    adapter: AdapterOption = "",
    threads: ThreadsOption = 0,
) -> None:
    """Talk with a model about pictures: /help lists what a line may begin with, Ctrl-C stops an answer, Ctrl-D ends.

    Without a terminal, every line of standard input is a question, and the exit code is 1 where one was not answered.
    """
    from serving.chat.session import Session
    from serving.chat.talk import Choices, Talk
    from serving.chat.terminal import converse

    answerer = _answerer(source, model, key or "", adapter, threads)
    session = Session(answerer, _voice(), Talk(system, choices=Choices(max_tokens, temperature)))
    converse(session, answerer, image or [])
    if session.num_failed and not sys.stdin.isatty():
        raise typer.Exit(EXIT_FAILED)


def _answerer(source: str, model: str, key: str, adapter: str, threads: int) -> Answerer:
    from serving.chat.fetch import is_web_address

    if is_web_address(source):
        from serving.chat.remote import RemoteAnswerer

        if adapter:
            raise typer.BadParameter(f"--adapter {adapter}: a server lists adapters as models; write --model {adapter}")
        return RemoteAnswerer(source, model, key)
    if model:
        raise typer.BadParameter(f"--model {model}: a bundle holds one model; leave it out")
    from serving.chat.local import LocalAnswerer

    check_adapter(Path(source), adapter)
    tell_of_failed_gates(Path(source))
    return LocalAnswerer(Path(source), threads, adapter)


def _voice() -> Voice:
    """Return what writes answers on standard output, and everything else beside it."""
    from rich.markup import escape

    from serving.chat.session import Voice

    stripped = Stripped()

    def write(piece: str) -> None:
        stripped(piece)

    def end() -> None:
        nonlocal stripped
        stripped = Stripped()
        console.print()

    def trouble(words: str) -> None:
        progress_console.print(f"[red]error:[/red] {escape(words)}", soft_wrap=True)

    return Voice(write, end, progress, trouble)
