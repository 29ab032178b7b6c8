"""`pocketvlm inspect`: what a bundle holds, verified."""

from __future__ import annotations

from commands.options import BundleArgument, JsonOption
from commands.terminal import console, print_json, print_manifest


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Verify a bundle and show what it holds."""
    from bundle.directory import open_bundle
    from quant.kv.needs import offered_policies
    from quant.visual_tokens.offered import offered_methods

    manifest = open_bundle(bundle, allow_ungated=True).manifest
    if as_json:
        offers = {"vision_methods": offered_methods(manifest), "kv_policies": offered_policies(manifest)}
        print_json({**manifest.model_dump(mode="json"), **offers})
        return
    print_manifest(bundle, manifest)
    if manifest.decoder:
        for what, names in (("vision methods", offered_methods(manifest)), ("KV policies", offered_policies(manifest))):
            console.print(f"{what}: {', '.join(names) or 'none'}", soft_wrap=True)
