"""Layouts in which public benchmarks are handed out, as rows of our formats; each is known by its keys or columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import QuantizationError
from quant.evaluation.rows import Place, Row, entries_of, parsed, read_text, table_of

_LETTERS = "ABCDEFGHIJ"
"""Columns of choices, as MMBench names them."""
_TOKEN_LINE = re.compile(r"(?P<image>[^\t#]+)#\d+\t(?P<caption>.+)")


@dataclass(frozen=True)
class Beside:
    """What a public layout keeps in other places than the file.

    Attributes:
        images: The folder of its images; None: the file's own.
        annotations: The file of right answers (VQA v2); None: there is none.
        split: Which part of a document that holds several is read.
    """

    images: Path | None = None
    annotations: Path | None = None
    split: str = "test"


def document_rows(path: Path, text: str, beside: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a JSON document: a list of rows, or a layout that is known.

    Raises:
        QuantizationError: It is no JSON, or of no layout that is known.
    """
    document = parsed(text, str(path))
    if isinstance(document, list):
        return entries_of(path, document)
    if isinstance(document, dict):
        for is_it, rows in _LAYOUTS.values():
            if is_it(document):
                return rows(path, document, beside)
    told = ", ".join(sorted(document)[:5]) if isinstance(document, dict) else type(document).__name__
    raise QuantizationError(
        f"{path} is of no layout that is known; it holds {told}. Known are a list of rows, {', '.join(_LAYOUTS)}"
    )


def table_rows(path: Path) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a table: columns as the formats name them, MMBench's, or Flickr30k's of image and caption.

    Raises:
        QuantizationError: It cannot be read.
    """
    if path.suffix == ".token":
        return _captions(path, _token_lines(path))
    rows = list(table_of(path))
    if rows and {"index", "question", "A", "B", "answer"} <= rows[0][1].keys():
        return ((where, _mmbench(row, where)) for where, row in rows)
    if rows and all(row.keys() == {"image", "caption"} for _, row in rows):
        return _captions(path, [(str(row["image"]), str(row["caption"])) for _, row in rows])
    return iter(rows)


def _mmbench(row: Row, where: Place) -> Row:
    """Return a row of MMBench's table, whose image is in base64: choices in columns, a hint before the question."""
    if "answer" not in row:
        raise QuantizationError(f"{where} has no answer; a test split without answers cannot be scored")
    choices = [row[letter] for letter in _LETTERS if letter in row]
    question = f"{row['hint']}\n{row['question']}" if "hint" in row else row["question"]
    taken = {"question": question, "choices": choices, "answer": row["answer"]}
    taken |= {"image": row["image"]} if "image" in row else {}
    return taken | ({"task": row["category"]} if "category" in row else {})


def _token_lines(path: Path) -> list[tuple[str, str]]:
    """Return image and caption of each line of Flickr30k's own file: image#number, a tab, the caption."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        matched = _TOKEN_LINE.fullmatch(line)
        if line.strip() and not matched:
            raise QuantizationError(f"{path}, line {number} is not image#number, a tab and a caption: {line[:40]!r}")
        if matched:
            found.append((matched["image"], matched["caption"]))
    return found


def _captions(path: Path, pairs: list[tuple[str, str]]) -> Iterator[tuple[Place, Row]]:
    """Yield a row for each image, with all of its captions."""
    groups: dict[str, list[str]] = {}
    for image, caption in pairs:
        groups.setdefault(image, []).append(caption)
    for number, (image, captions) in enumerate(groups.items(), start=1):
        yield Place(path, number, "image"), {"image": image, "captions": captions}


def _vqa_v2(path: Path, document: Mapping[str, Any], beside: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield questions of VQA v2 with the ten answers of its other file; images as COCO names them."""
    answers = _vqa_answers(path, beside)
    subtype = document.get("data_subtype", "val2014")
    for number, question in enumerate(_objects(path, document, "questions"), start=1):
        where = Place(path, number, "question")
        image_id, question_id = (_key(question, name, where) for name in ("image_id", "question_id"))
        given = answers.get(question_id)
        if given is None:
            raise QuantizationError(f"{where}: {beside.annotations} has no answers to question_id {question_id}")
        yield (
            where,
            {
                "image": f"COCO_{subtype}_{int(image_id):012d}.jpg",
                "question": _key(question, "question", where),
                "answers": [str(each["answer"]) for each in _key(given, "answers", where)],
                "metric": "vqa",
                "task": str(given.get("answer_type", "questions")),
            },
        )


def _vqa_answers(path: Path, beside: Beside) -> dict[Any, Mapping[str, Any]]:
    if beside.annotations is None:
        raise QuantizationError(f"{path} holds questions of VQA v2 without answers; name their file with --annotations")
    document = parsed(read_text(beside.annotations), str(beside.annotations))
    if not isinstance(document, dict):
        raise QuantizationError(f"{beside.annotations} is no file of VQA v2's annotations")
    return {each.get("question_id"): each for each in _objects(beside.annotations, document, "annotations")}


def _coco_captions(path: Path, document: Mapping[str, Any], _: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield a row for each image of COCO's captions."""
    captions: dict[Any, list[str]] = {}
    for number, each in enumerate(_objects(path, document, "annotations"), start=1):
        where = Place(path, number, "annotation")
        captions.setdefault(_key(each, "image_id", where), []).append(str(_key(each, "caption", where)))
    for number, image in enumerate(_objects(path, document, "images"), start=1):
        where = Place(path, number, "image")
        if given := captions.get(_key(image, "id", where)):
            yield where, {"image": _key(image, "file_name", where), "captions": given}


def _karpathy(path: Path, document: Mapping[str, Any], beside: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield the images of one split of Karpathy's files for COCO and Flickr, with their captions."""
    for number, image in enumerate(_objects(path, document, "images"), start=1):
        where = Place(path, number, "image")
        if image.get("split") != beside.split:
            continue
        file = "/".join(filter(None, (image.get("filepath"), _key(image, "filename", where))))
        yield where, {"image": file, "captions": [_key(each, "raw", where) for each in image["sentences"]]}


def _science_qa(path: Path, document: Mapping[str, Any], beside: Beside) -> Iterator[tuple[Place, Row]]:
    """Yield the problems of one split of ScienceQA; images lie in a folder for each split and problem."""
    for number, (name, problem) in enumerate(document.items(), start=1):
        where = Place(path, number, f"problem {name}, entry")
        if problem.get("split", beside.split) != beside.split:
            continue
        hint = f"{problem['hint']}\n" if problem.get("hint") else ""
        image = {"image": f"{beside.split}/{name}/{problem['image']}"} if problem.get("image") else {}
        yield (
            where,
            {
                **image,
                "question": hint + _key(problem, "question", where),
                "choices": _key(problem, "choices", where),
                "answer": _key(problem, "answer", where),
                "task": str(problem.get("subject", "questions")),
            },
        )


def _objects(path: Path, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    given = document.get(name)
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise QuantizationError(f"{path}: {name} is no list of objects")
    return given


def _key(given: Mapping[str, Any], name: str, where: Place) -> Any:
    if name not in given:
        raise QuantizationError(f"{where} has no {name}; it has {', '.join(sorted(given))}")
    return given[name]


def _is_karpathy(document: Mapping[str, Any]) -> bool:
    images = document.get("images")
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def _is_science_qa(document: Mapping[str, Any]) -> bool:
    return bool(document) and all(isinstance(each, dict) and "choices" in each for each in document.values())


Rows = Callable[[Path, Mapping[str, Any], Beside], Iterator[tuple[Place, Row]]]
_LAYOUTS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Rows]] = {
    "VQA v2 questions": (lambda document: "questions" in document, _vqa_v2),
    "Karpathy's splits": (_is_karpathy, _karpathy),
    "COCO captions": (lambda document: {"images", "annotations"} <= document.keys(), _coco_captions),
    "ScienceQA problems": (_is_science_qa, _science_qa),
}
