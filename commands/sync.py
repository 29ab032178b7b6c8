"""`pocketvlm sync`: a bundle brought to a device, and the one before brought back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, usage_errors
from commands.terminal import console, print_json, progress


def sync(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE DEST",
            help="A bundle directory, and a folder or user@host:/folder, which gets versions/ and the link current.",
            show_default=False,
        ),
    ],
    keep: Annotated[
        int, typer.Option(min=1, help="Versions that stay there; what is served and the one before always do.")
    ] = 2,
    ssh: Annotated[str, typer.Option(help="The command that reaches another machine, such as 'ssh -p 2222'.")] = "ssh",
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Serve the version before again: sync --rollback DEST.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a bundle to a device: only changed files, verified there by digest, switched in one rename.

    Needs a POSIX shell and sha256sum there, and ssh here; rsync is used where both have it. A sync that was cut goes on
    where it was. A server of DEST/current is to be started anew afterwards.
    """
    from devices.sync.place import read_place
    from devices.sync.versions import roll_back

    if len(paths) != (1 if rollback else 2):
        raise typer.BadParameter("sync BUNDLE DEST, or sync --rollback DEST")
    with usage_errors():
        place = read_place(paths[-1], ssh)
    if rollback:
        version = roll_back(place)
        print_json({"version": version}) if as_json else console.print(f"{place}/current is {version}")
        return
    from bundle.directory import open_bundle
    from devices.sync.sync import sync_bundle

    sent = sync_bundle(open_bundle(Path(paths[0]), allow_ungated=True), place, num_kept=keep, say=progress)
    if as_json:
        print_json(asdict(sent))
        return
    console.print(
        f"{place}/current is {sent.version}: {sent.sent_bytes / 1e6:,.1f} MB sent, {sent.kept_bytes / 1e6:,.1f} MB "
        f"were there. Start its server anew; pocketvlm sync --rollback {place} returns",
        soft_wrap=True,
        markup=False,
    )
    for name in sent.removed:
        console.print(f"removed {name}")
