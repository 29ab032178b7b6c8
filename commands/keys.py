"""`pocketvlm keys`: API keys are made, listed and revoked in the file that a server reads."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import JsonOption, usage_errors
from commands.terminal import announce, console, print_json, progress

if TYPE_CHECKING:
    from pydantic import ValidationError

keys = typer.Typer(name="keys", no_args_is_help=True, help="Make, list and revoke API keys of a server.")

_SPAN = re.compile(r"(?P<count>\d{1,5})(?P<unit>[hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}

FileOption = Annotated[
    Path, typer.Option("--file", "-f", help="The file of keys, for `serve --keys-file`.", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(help="Of the key: letters, digits, and . _ -", show_default=False)]


@keys.command()
def add(
    name: NameArgument,
    file: FileOption,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload models, and clear caches.")] = False,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 30d, 12h, 8w, or a date such as 2027-01-31. Default: never.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Default: any number.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Of prompts, images' included, and answers. Default: any number.")
    ] = None,
    concurrent_requests: Annotated[int | None, typer.Option(help="Under way at once. Default: any number.")] = None,
) -> None:
    """Make a key, print it once, and write its hash into the file."""
    from pydantic import ValidationError

    from serving.access.key_file import add_key
    from serving.access.keys import ApiKey, digest_of, new_key

    key, now = new_key(), datetime.now(timezone.utc).replace(microsecond=0)
    with usage_errors():
        try:
            kept = ApiKey(
                name=name,
                sha256=digest_of(key.encode()),
                admin=admin,
                created=now,
                expires=None if expires is None else moment_of(expires, now),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                concurrent_requests=concurrent_requests,
            )
        except ValidationError as error:
            raise typer.BadParameter(_problem(error)) from error
        add_key(file, kept)
    progress(f"{file} has the hash of {name}; the key itself is printed here, and kept nowhere:")
    announce(key)


@keys.command("list")
def list_keys(file: FileOption, json: JsonOption = False) -> None:
    """Print what the file tells of its keys."""
    from serving.access.key_file import read_keys

    with usage_errors():
        found = read_keys(file)
    if json:
        print_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
        return
    now = datetime.now(timezone.utc)
    for key in found:
        facts = key.model_dump(mode="json", exclude_defaults=True, exclude={"name", "sha256", "revoked"})
        told = ", ".join(f"{field} {value}" for field, value in facts.items())
        console.print(f"{key.name}: {key.refusal(now) or 'taken'}; {told}", soft_wrap=True, markup=False)


@keys.command()
def revoke(name: NameArgument, file: FileOption) -> None:
    """Refuse a key from now on; a server that runs notices within two seconds."""
    from serving.access.key_file import revoke_key

    with usage_errors():
        revoke_key(file, name)
    progress(f"{name} is revoked in {file}")


def moment_of(text: str, now: datetime) -> datetime:
    """Return when a key ends: a span from now on, or a date and time, in UTC where it names no zone.

    Raises:
        BadParameter: It is neither, or past.
    """
    if match := _SPAN.fullmatch(text):
        moment = now + int(match["count"]) * _UNITS[match["unit"]]
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise typer.BadParameter(f"--expires {text}: write 30d, 12h, 8w, or a date such as 2027-01-31") from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    if moment <= now:
        raise typer.BadParameter(f"--expires {text}: that is past; it is {now:%Y-%m-%d %H:%M} UTC")
    return moment


def _problem(error: ValidationError) -> str:
    """Return what is wrong with a key's fields, by the option's name."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0]).replace("_", "-")
    advice = "; to stop a key, revoke it" if first["type"] == "greater_than_equal" else ""
    return f"{option} = {first['input']!r}: {first['msg']}{advice}"
