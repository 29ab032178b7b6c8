"""`pocketvlm adopt`: an encoder that others exported to ONNX, made into a bundle."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from commands.options import JsonOption, OutputOption, OverwriteOption
from commands.terminal import print_json, print_manifest, progress


def adopt(
    export: Annotated[
        str,
        typer.Argument(
            help="A folder that Optimum or transformers.js wrote, or the id of one on the Hugging Face hub.",
            show_default=False,
        ),
    ],
    output: OutputOption,
    name: Annotated[str | None, typer.Option(help="Model id to serve it under. Default: the folder's name.")] = None,
    logit_scale: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Multiplier of cosines in zero-shot scores, e.g. 100 for OpenAI's CLIP. Default: read off the "
            "export's logits.",
            show_default=False,
        ),
    ] = None,
    logit_bias: Annotated[
        float | None,
        typer.Option(
            help="Added behind --logit-scale where scores are independent of one another (SigLIP). Default: none.",
            show_default=False,
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "last"] | None,
        typer.Option(
            help="How a text's tokens become one vector, where the export gives one for each. Default: as "
            "1_Pooling/config.json says.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle of an encoder that Optimum or transformers.js exported: CLIP, SigLIP, text encoders and others."""
    if logit_bias is not None and logit_scale is None:
        raise typer.BadParameter(f"--logit-bias {logit_bias} goes with --logit-scale, and that is missing")
    from export.adopted.adopter import adopt_export
    from export.adopted.adoption import Said

    said = Said(logit_scale, logit_bias, pooling)
    manifest = adopt_export(export, output, name=name, said=said, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_manifest(output, manifest)
