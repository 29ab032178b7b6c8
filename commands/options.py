"""Arguments and options that several subcommands share, and the files that they name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bundle.errors import ImageError, ModelNotFoundError, ParameterError, QuantizationError, SettingsError

_OTHER_URL = re.compile(r"(ftp|s3|gs|data):", re.IGNORECASE)
_SHOWN_CHARACTERS = 100
"""Of a value in a message: a data URL has millions."""

BundleArgument = Annotated[Path, typer.Argument(help="A bundle directory.", show_default=False)]
ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|URL|-",
        help="An image: a file, a web address or - for standard input; may be repeated. Default: none.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="The bundle to write; its folders are made.", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")]
AdapterOption = Annotated[
    str,
    typer.Option(
        help="Of the bundle's adapters, by name, the one to answer through (export --lora NAME=FOLDER). Default: none.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=0, max=1024, help="Threads per operator; 0: one per physical core.")]


def check_adapter(bundle: Path, adapter: str) -> None:
    """Refuse an adapter that a bundle does not hold, before its weights are read."""
    from bundle.directory import read_manifest

    if adapter:
        with usage_errors():
            read_manifest(bundle).adapter_number(adapter)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Make of a value that is refused a wrong command line, with its exit code 2."""
    try:
        yield
    except (SettingsError, QuantizationError, ParameterError, ModelNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error


def read_image(source: str) -> bytes:
    """Return what an image file, a web address or standard input (-) holds, not yet decoded.

    Raises:
        BadParameter: It is another kind of URL, or standard input is empty.
        MachineError: It cannot be read or fetched.
        ImageError: It is too large.
    """
    from serving.chat.fetch import read_picture

    if _OTHER_URL.match(source):
        raise typer.BadParameter(
            f"{source[:_SHOWN_CHARACTERS]}: images come from files, from http and https, and from standard input (-)"
        )
    return _read_stdin() if source == "-" else read_picture(source)


def _read_stdin() -> bytes:
    """Return standard input; one byte more than an image may have is enough for the one who decodes it."""
    from bundle.decode import DEFAULT_LIMITS

    if not (data := sys.stdin.buffer.read(DEFAULT_LIMITS.max_bytes + 1)):
        raise typer.BadParameter("--image - reads an image from standard input, which held none")
    return data


@contextmanager
def naming(files: Sequence[str]) -> Iterator[None]:
    """Begin the message about an image with the file that it was read from; with several, with all of them."""
    try:
        yield
    except ImageError as error:
        told = files[0] if len(files) == 1 else f"one of {', '.join(files)}"
        raise ImageError(f"{told}: {error}") from error


def read_text(text: str, option: str) -> str:
    """Return a text of the command line, or standard input where it is "-".

    Args:
        text: As given.
        option: What it was given for, in a message.

    Raises:
        BadParameter: It is empty, or no UTF-8.
    """
    try:
        words = sys.stdin.buffer.read().decode().rstrip("\r\n") if text == "-" else text
        words.encode()
    except UnicodeError as error:
        raise typer.BadParameter(f"{option} is not UTF-8: {error}") from error
    if not words:
        where = "standard input held none" if text == "-" else "it is empty"
        raise typer.BadParameter(f"{option} needs a text of at least one character; {where}")
    return words


def read_size(text: str, option: str) -> int:
    """Return a number of bytes of the command line, such as "6GiB".

    Args:
        text: As given.
        option: What it was given for, in a message.

    Raises:
        SettingsError: It is no size above 0.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        raise SettingsError(f"{option} {text!r} is no size; write it such as 6GiB or 6000MB")
    return size
