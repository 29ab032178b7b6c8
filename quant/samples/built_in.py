"""Samples for models that are not ours: texts written for this, and questions about scikit-image's photographs.

They have no right answers for a model that nobody trained to give them. What a variant says is held against what its
parent says with these answers fed, which needs none. Kinds are balanced over two halves, so that nothing is measured on
what weights were fitted to.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from bundle.dims import DecoderDims
from bundle.directory import Bundle
from bundle.errors import ContextLengthError, PromptError
from bundle.extras import install_line
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.question import QuestionReader
from quant.calibration.feeds import MOST_TILES, spread
from quant.evaluation.gate_samples import FileCaption, FileQuestion
from quant.evaluation.pictures import ImageFile
from quant.evaluation.rows import Place
from quant.quality.evaluation import READS_NO_TEXTS, Evaluation, Passage, Question, turns_of

Half = Literal["calibration", "evaluation"]

TEXTS, PHOTOGRAPHS = (Path(__file__).with_name(name) for name in ("texts.jsonl", "photographs.jsonl"))
MOST_TEXTS = 98
"""In each half."""
PROSE = ("fact", "explanation", "passage")
"""Kinds of texts whose answers a text encoder may have met as captions: plain English."""
_PHOTOGRAPH = "photograph"
_FEWEST_PHOTOGRAPHS = 4
"""Enough for the gates to catch a tower that sees every image alike (tests/quant/test_planted.py)."""
_USUAL_PX = 512
"""Side of most of the photographs."""
_NO_ANSWERS = "the built-in samples have no right answers for this model"
_TOO_FEW = "the built-in photographs are too few to be searched among"

_Sample = TypeVar("_Sample")


@dataclass(frozen=True)
class BuiltInText:
    """A question and an answer.

    Attributes:
        task: What kind of text it is.
        question: Asked.
        answer: Fed to parent and variant alike.
    """

    task: str
    question: str
    answer: str


@dataclass(frozen=True)
class Photograph:
    """A photograph of scikit-image and what is true of it.

    Attributes:
        image: Name of its file.
        question: About it.
        answer: In one or two sentences.
        caption: In a few words.
    """

    image: str
    question: str
    answer: str
    caption: str


def built_in_samples(bundle: Bundle, half: Half) -> Evaluation:
    """Return one half of the built-in samples, of the kind that a bundle's task wants.

    Photographs are left out where scikit-image is not installed, and fewer are taken of a model that cuts each into
    many tiles. Questions that do not fit the model's context or vocabulary, or that it does not take, are left out, as
    are texts that a decoder that embeds has no places for.
    """
    photographs, note = _photographs(bundle, half)
    source = f"built-in {half} {'images' if bundle.manifest.image_vectors else 'texts'}{note}"
    texts = texts_of(half)
    if bundle.manifest.reads_pairs:
        captions = [FileCaption(file, each.caption) for file, each in photographs]
        return Evaluation(captions=captions, passages=_passages(bundle, texts), source=source, no_accuracy=_NO_ANSWERS)
    if bundle.manifest.embeds:
        captions = [FileCaption(file, each.caption) for file, each in photographs]
        if bundle.manifest.image_vectors is not None:
            return Evaluation(captions=captions, source=source, no_accuracy=READS_NO_TEXTS)
        prose = [text.answer for text in texts if text.task in PROSE]
        if bundle.manifest.embedder is not None:
            captions, prose = _within(captions, prose, bundle, bundle.manifest.embedder.max_positions)
        return Evaluation(captions=captions, texts=prose, source=source, no_accuracy=_TOO_FEW)
    questions = [FileQuestion.plain(text.task, (), text.question, text.answer) for text in texts]
    questions += [FileQuestion.plain(_PHOTOGRAPH, (file,), each.question, each.answer) for file, each in photographs]
    return Evaluation(questions=_fitting(questions, bundle), source=source, no_accuracy=_NO_ANSWERS)


def _passages(bundle: Bundle, texts: Sequence[BuiltInText]) -> list[Passage]:
    """Return questions and answers in plain English for a model that reads two texts."""
    prose = [] if bundle.manifest.sees else [text for text in texts if text.task in PROSE]
    return [Passage(text.question, text.answer) for text in prose]


def built_in_texts(bundle: Bundle, half: Half, most: int = MOST_TEXTS) -> Evaluation:
    """Return texts of one half for a language model, over all kinds, for systems that see nothing too."""
    questions = [FileQuestion.plain(text.task, (), text.question, text.answer) for text in texts_of(half)]
    fitting = spread(_fitting(questions, bundle), most)
    return Evaluation(questions=fitting, source=f"built-in {half} texts", no_accuracy=_NO_ANSWERS)


def texts_of(half: Half) -> list[BuiltInText]:
    """Return the texts of one half: every other one of each kind."""
    rows = [BuiltInText(**json.loads(line)) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    kinds = {row.task: [other for other in rows if other.task == row.task] for row in rows}
    return [row for of_kind in kinds.values() for row in _half(of_kind, half)]


def photographs_of(half: Half) -> list[Photograph]:
    """Return the photographs of one half: every other one, for two of a kind stand together."""
    lines = PHOTOGRAPHS.read_text(encoding="utf-8").splitlines()
    return _half([Photograph(**json.loads(line)) for line in lines], half)


def _half(rows: list[_Sample], half: Half) -> list[_Sample]:
    return rows[("calibration", "evaluation").index(half) :: 2]


def _photographs(bundle: Bundle, half: Half) -> tuple[list[tuple[ImageFile, Photograph]], str]:
    """Return the photographs that are at hand, and what is to be said of them behind "texts"."""
    if not bundle.manifest.sees:
        return [], ""
    folder = _photograph_folder()
    if folder is None:
        return [], f"; no photographs, for scikit-image is missing ({install_line('photographs')})"
    found = list(_files(folder, half))
    tiles = ImageSpec.read(bundle.path(PREPROCESSOR)).layout(_USUAL_PX, _USUAL_PX).num_tiles
    taken = spread(found, max(_FEWEST_PHOTOGRAPHS, MOST_TILES // tiles))
    return taken, " and photographs" if taken else "; no photographs, for scikit-image's are not where they were"


def _photograph_folder() -> Path | None:
    """Return where scikit-image keeps its photographs, without importing it."""
    found = importlib.util.find_spec("skimage")
    return None if found is None or found.origin is None else Path(found.origin).with_name("data")


def _files(folder: Path, half: Half) -> Iterator[tuple[ImageFile, Photograph]]:
    for number, each in enumerate(photographs_of(half), start=1):
        if (folder / each.image).is_file():
            yield ImageFile(folder / each.image, Place(PHOTOGRAPHS, number)), each


def _within(
    captions: list[FileCaption], texts: list[str], bundle: Bundle, most: int
) -> tuple[list[FileCaption], list[str]]:
    """Return what a decoder that embeds has places for: captions and their images, and texts."""
    prompts, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))

    def fits(part: str | Placeholder, layouts: Sequence[TileLayout] = ()) -> bool:
        return prompts.build([Turn("user", (part,))], layouts).num_tokens <= most

    shown = [each for each in captions if fits(Placeholder.IMAGE, [spec.layout(*each.image.size)])]
    return [each for each in shown if fits(each.caption)], [text for text in texts if fits(text)]


def _fitting(questions: list[FileQuestion], bundle: Bundle) -> list[Question]:
    prompts, spec = PromptBuilder.from_bundle(bundle), ImageSpec.read(bundle.path(PREPROCESSOR))
    dims, reader = bundle.manifest.decoder, QuestionReader.from_bundle(bundle)
    return [question for question in questions if dims and _fits(question, prompts, reader, spec, dims)]


def _fits(
    question: FileQuestion, prompts: PromptBuilder, reader: QuestionReader | None, spec: ImageSpec, dims: DecoderDims
) -> bool:
    """Say whether a model takes such a question, and whether it and its answer are within context and vocabulary."""
    shown = spec.among(len(question.images))
    layouts = [shown.layout(*image.size) for image in question.images]
    try:
        prompt = prompts.build(turns_of(question), layouts)
        if reader is not None and question.images:
            reader.ids(turns_of(question))
    except (ContextLengthError, PromptError):  # Florence-2 takes no text alone; encoders hold questions of some length
        return False
    ids = prompts.tokenizer.encode(question.answer)
    unknown = prompts.tokenizer.unknown_id
    is_spelled = unknown is None or not (unknown in ids or unknown in prompt.token_ids)
    return is_spelled and 0 < len(ids) < dims.max_positions - prompt.num_tokens
