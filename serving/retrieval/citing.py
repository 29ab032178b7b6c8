"""From a question and an index to an answer that names the images it rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundle.errors import SettingsError
from quant.evaluation.asking import Part, RefusedError, Respondent, Said
from serving.retrieval.index import Hit, ImageIndex

INSTRUCTION = "Answer from the images, and name those that you used by their numbers, such as [1]."
_CITED = re.compile(r"\[(\d+(?:\s*,\s*\d+)*)\]")


@dataclass(frozen=True)
class Cited:
    """An answer and the images that it was made of.

    Attributes:
        text: As the model said it.
        shown: The images, in the order of their numbers from 1 on.
        numbers: Those that the answer names, in its order; where one image was asked about alone, its own.
        unknown: Numbers in the answer that no image has.
    """

    text: str
    shown: tuple[Hit, ...]
    numbers: tuple[int, ...]
    unknown: tuple[int, ...] = ()


async def found(index: ImageIndex, query: str | bytes, respondent: Respondent, k: int) -> list[Hit]:
    """Return the images nearest to a text or an image.

    Raises:
        SettingsError: The index is of another model, or the model does not take the query.
    """
    index.require_model(respondent)
    try:
        (vector,) = await respondent.embed([query], "query")
    except RefusedError as error:
        raise SettingsError(f"the query was not taken by {respondent.name}: {error}") from error
    return index.search(vector, k)


async def reranked(hits: Sequence[Hit], query: str | bytes, respondent: Respondent) -> list[Hit]:
    """Return hits in the order of another model's scores of the query with each, which become theirs.

    Raises:
        SettingsError: The model does not rank, or does not take an image.
        OSError: An image is gone.
    """
    if not respondent.ranks:
        raise SettingsError(
            f"{respondent.name} answers and ranks nothing; --rerank wants an encoder or a cross-encoder"
        )
    if not hits:
        return []
    try:
        scores = await respondent.scores(query, [hit.path.read_bytes() for hit in hits])
    except RefusedError as error:
        raise SettingsError(f"{respondent.name} did not take what was found: {error}") from error
    return [Hit(hits[at].name, hits[at].path, float(scores[at])) for at in np.argsort(-scores, kind="stable")]


async def answered(question: str, hits: Sequence[Hit], respondent: Respondent, max_tokens: int) -> Cited:
    """Return the answer to a question about images that are shown together, each behind its number.

    Raises:
        SettingsError: The model does not take so many images, or makes no answers.
        OSError: An image is gone.
    """
    parts: list[Part] = []
    for number, hit in enumerate(hits, start=1):
        parts += [f"[{number}]", hit.path.read_bytes()]
    text = await _answer(respondent, [*parts, f"{question}\n{INSTRUCTION}"], max_tokens, len(hits))
    named = dict.fromkeys(int(each) for group in _CITED.findall(text) for each in group.split(","))
    known = tuple(number for number in named if 1 <= number <= len(hits))
    return Cited(text, tuple(hits), known, tuple(number for number in named if number not in known))


async def answered_each(question: str, hits: Sequence[Hit], respondent: Respondent, max_tokens: int) -> list[Cited]:
    """Return the answer to a question about each image alone, which is its citation then.

    Raises:
        SettingsError: The model does not take an image, or makes no answers.
        OSError: An image is gone.
    """
    found = []
    for hit in hits:
        text = await _answer(respondent, [hit.path.read_bytes(), question], max_tokens, 1)
        found.append(Cited(text, (hit,), (1,)))
    return found


async def _answer(respondent: Respondent, parts: Sequence[Part], max_tokens: int, num_images: int) -> str:
    if not respondent.answers:
        what = "makes vectors" if respondent.embeds else "scores pairs"
        raise SettingsError(f"{respondent.name} {what} and no answers; name a vision-language model")
    try:
        return await respondent.answer([Said("user", tuple(parts))], max_tokens)
    except RefusedError as error:
        hint = "; show fewer with --images, or one at a time with --each" if num_images > 1 else ""
        raise SettingsError(f"{respondent.name} did not take {num_images} images: {error}{hint}") from error
