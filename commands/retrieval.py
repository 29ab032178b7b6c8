"""`pocketvlm index`, `search` and `ask`: images of a folder, found by words or an image, and answers that cite them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bundle.errors import MachineError
from commands.options import JsonOption, ThreadsOption, read_image, read_text, usage_errors
from commands.respondents import Endpoint, KeyOption, NameOption, respondent_of
from commands.terminal import console, print_json, progress

if TYPE_CHECKING:
    from serving.retrieval.citing import Cited
    from serving.retrieval.index import Hit

IndexArgument = Annotated[Path, typer.Argument(help="An index, by pocketvlm index.", show_default=False)]
_ENCODER = "What makes vectors: the bundle of a model that embeds, or an endpoint."
EncoderOption = Annotated[
    str | None, typer.Option("--encoder", help=f"{_ENCODER} Default: what made the index, where it was then.")
]
RerankOption = Annotated[
    str | None,
    typer.Option(help="A model that orders what was found: one that embeds, or a cross-encoder. Default: none."),
]
DepthOption = Annotated[int, typer.Option(min=1, help="Images that --rerank looks at.")]
_KEY_ENV = "OPENAI_API_KEY"


def index(
    folder: Annotated[Path, typer.Argument(help="A folder of images, its folders with it.", show_default=False)],
    model: Annotated[str, typer.Option(help=_ENCODER, show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The index, a folder; it is made, or brought up to date.")
    ] = Path("index"),
    name: NameOption = None,
    key_env: KeyOption = _KEY_ENV,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Embed every image anew.")] = False,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Embed the images of a folder for search; again: only what is new or changed."""
    from serving.retrieval.updating import Update, update_index

    async def run() -> Update:
        async with respondent_of(model, Endpoint(name, key_env), threads) as respondent:
            return await update_index(output, folder, respondent, model, progress, anew=overwrite)

    with usage_errors():
        update = asyncio.run(run())
    for file, why in update.unread.items():
        progress(f"{file} is left out: {why}")
    facts = update.index.facts
    told = {
        "index": str(output),
        "model": facts.model,
        "images": len(facts.entries),
        "kept": update.num_kept,
        "embedded": update.num_embedded,
        "gone": update.num_gone,
        "left_out": dict(update.unread),
    }
    if as_json:
        print_json(told)
        return
    counts = f"{told['images']} images of {facts.model}; {update.num_embedded} embedded, {update.num_kept} as they were"
    console.print(f"{escape(str(output))}: {counts}, {update.num_gone} gone", soft_wrap=True)


def search(
    index: IndexArgument,
    query: Annotated[str | None, typer.Argument(help="Words; - reads them from stdin. Default: --image.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="An image in the place of words. Default: none.")
    ] = None,
    num: Annotated[int, typer.Option("-k", min=1, help="Most images that are told.")] = 5,
    encoder: EncoderOption = None,
    rerank: RerankOption = None,
    depth: DepthOption = 20,
    name: NameOption = None,
    key_env: KeyOption = _KEY_ENV,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find the images of an index that are nearest to words or to an image."""
    if (query is None) == (image is None):
        raise typer.BadParameter("give either a QUERY or --image")
    asked = read_image(image) if image is not None else read_text(query or "", "QUERY")
    seeker = _Seeker(index, encoder, rerank, depth, Endpoint(name, key_env), threads)
    with usage_errors(), _images_there():
        hits = asyncio.run(seeker.hits(asked, num))
    if as_json:
        print_json([_told(hit) for hit in hits])
    else:
        _print_hits(hits)


def ask(
    index: IndexArgument,
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="What answers: a vision-language bundle or an endpoint.", show_default=False)
    ],
    query: Annotated[str | None, typer.Option(help="Words that images are found by. Default: the question.")] = None,
    num: Annotated[int, typer.Option("--images", "-k", min=1, help="Images that are shown to the model.")] = 3,
    each: Annotated[bool, typer.Option("--each", help="Ask about each image alone, not about all together.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    encoder: EncoderOption = None,
    rerank: RerankOption = None,
    depth: DepthOption = 20,
    name: NameOption = None,
    key_env: KeyOption = _KEY_ENV,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the images of an index, and cite them."""
    from serving.retrieval.citing import answered, answered_each

    words = read_text(question, "the question")
    seeker = _Seeker(index, encoder, rerank, depth, Endpoint(None, key_env), threads)

    async def run() -> list[Cited]:
        hits = await seeker.hits(query or words, num)
        async with respondent_of(model, Endpoint(name, key_env), threads) as respondent:
            if each:
                return await answered_each(words, hits, respondent, max_tokens)
            return [await answered(words, hits, respondent, max_tokens)]

    with usage_errors(), _images_there():
        answers = asyncio.run(run())
    if as_json:
        print_json({"question": words, "answers": [_told_answer(answer) for answer in answers]})
    else:
        _print_answers(answers)


class _Seeker:
    """Finds images as the command line says."""

    def __init__(
        self, index: Path, encoder: str | None, rerank: str | None, depth: int, endpoint: Endpoint, threads: int
    ) -> None:
        self._directory, self._encoder, self._rerank = index, encoder, rerank
        self._depth, self._endpoint, self._threads = depth, endpoint, threads

    async def hits(self, query: str | bytes, num: int) -> list[Hit]:
        """Return the nearest images, in the second encoder's order where there is one."""
        from serving.retrieval.citing import found, reranked
        from serving.retrieval.index import ImageIndex

        index = ImageIndex.read(self._directory)
        target = self._encoder or index.facts.target
        async with respondent_of(target, self._endpoint, self._threads) as respondent:
            hits = await found(index, query, respondent, max(num, self._depth) if self._rerank else num)
        if self._rerank:
            async with respondent_of(self._rerank, Endpoint(None, self._endpoint.key_env), self._threads) as respondent:
                hits = await reranked(hits, query, respondent)
        return hits[:num]


@contextmanager
def _images_there() -> Iterator[None]:
    """Say of an image that is gone what to do.

    Raises:
        MachineError: An image that was found cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{error.filename} cannot be read ({error.strerror}); bring the index up to date with pocketvlm index"
        ) from error


def _told(hit: Hit) -> dict[str, Any]:
    return {"image": hit.name, "path": str(hit.path), "score": round(hit.score, 6)}


def _told_answer(answer: Cited) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "citations": [{"number": number, **_told(answer.shown[number - 1])} for number in answer.numbers],
        "shown": [{"number": number, **_told(hit)} for number, hit in enumerate(answer.shown, start=1)],
        "unknown_numbers": list(answer.unknown),
    }


def _print_hits(hits: Sequence[Hit]) -> None:
    table = Table("", "image", "score")
    for number, hit in enumerate(hits, start=1):
        table.add_row(str(number), escape(hit.name), f"{hit.score:.3f}")
    console.print(table)


def _print_answers(answers: Sequence[Cited]) -> None:
    for answer in answers:
        console.print(answer.text.strip(), markup=False)
        for number in answer.numbers:
            hit = answer.shown[number - 1]
            console.print(f"  [{number}] {hit.path} ({hit.score:.3f})", markup=False, soft_wrap=True)
        if not answer.numbers:
            shown = ", ".join(f"[{number}] {hit.name}" for number, hit in enumerate(answer.shown, start=1))
            progress(f"the answer names no image; it was shown {shown}")
        if answer.unknown:
            progress(f"the answer names images that it was not shown: {', '.join(map(str, answer.unknown))}")
