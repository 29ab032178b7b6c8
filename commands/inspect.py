"""`pocketvlm inspect`: what a bundle holds, verified."""

from __future__ import annotations

from commands.options import BundleArgument, JsonOption
from commands.terminal import print_json, print_manifest


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Verify a bundle and show what it holds."""
    from bundle.directory import open_bundle

    manifest = open_bundle(bundle, allow_ungated=True).manifest
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_manifest(bundle, manifest)
