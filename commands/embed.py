"""`pocketvlm embed`: embeddings and their cosines, without a server."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from commands.options import BundleArgument, ImageOption, JsonOption, ThreadsOption, naming, read_image, read_text
from commands.terminal import console, print_json, tell_of_failed_gates


def embed(
    bundle: BundleArgument,
    image: ImageOption = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text; - reads one from stdin. May be repeated. Default: none.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Which of the model's adapters embeds, of a model that holds several; .query or .passage behind it "
            "says what the inputs are. Default: the first.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Embed images and texts, and show how alike they are."""
    from bundle.similarity import similarity
    from serving import oneshot
    from serving.protocol import ImagePart, TextPart

    files = image or []
    if not files and not text:
        raise typer.BadParameter("give at least one --image or --text")
    texts = [read_text(words, "--text") for words in text or ()]
    names = [*files, *texts]
    images: list[TextPart | ImagePart] = [ImagePart(read_image(file)) for file in files]
    inputs = (*images, *(TextPart(words) for words in texts))
    tell_of_failed_gates(bundle)
    with naming(files):
        result = asyncio.run(oneshot.embed(bundle, inputs, threads, task))
    vectors = list(result.embeddings)
    if as_json:
        rows = [each.tolist() for each in vectors]
        print_json({"inputs": names, "embeddings": rows, "prompt_tokens": result.prompt_tokens})
        return
    table = Table("cosine" if vectors[0].ndim == 1 else "score", *(str(i + 1) for i in range(len(names))))
    for i, (name, own) in enumerate(zip(names, vectors, strict=True)):
        table.add_row(f"{i + 1} {escape(name)}", *(f"{similarity(own, other):.3f}" for other in vectors))
    console.print(table)
