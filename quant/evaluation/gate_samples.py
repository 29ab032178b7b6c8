"""A user's own samples as the gate takes them: what to measure a variant on, or to fit its weights to.

The file is read as `pocketvlm evaluate` reads it (`quant.evaluation.formats`, docs/evaluation.md); here a reply is
right or wrong, images are paths or data URLs, and are opened when they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bundle.errors import QuantizationError
from bundle.manifest import Manifest
from bundle.zero_shot import SLOT, label_text
from quant.evaluation.asking import question_of
from quant.evaluation.formats import sample_of
from quant.evaluation.layouts import Beside
from quant.evaluation.pictures import Picture
from quant.evaluation.reading import check_one_format, rows_of
from quant.evaluation.rows import Place, Row
from quant.evaluation.sample import Sample, Shown
from quant.evaluation.scorers.table import GATED, METRICS, RIGHT
from quant.quality.evaluation import READS_NO_TEXTS, Evaluation, Labelled, Passage, images_of

LABELS = "label"
"""The zero-shot task of a file's labels."""
_NO_FILE = Place(Path("built-in"), 0)
_ASKED = ("choice", "vqa", "ocr")
_EMBEDDED = ("caption", "label")


@dataclass(frozen=True)
class FileQuestion:
    """A question of a file; its images are opened each time they are asked for.

    Attributes:
        sample: The row.
    """

    sample: Sample

    @classmethod
    def plain(cls, task: str, pictures: Sequence[Picture], question: str, answer: str) -> FileQuestion:
        """Return a question with one right answer, which a reply must equal."""
        return cls(Sample(_NO_FILE, "vqa", task, "exact", Shown(tuple(pictures)), question, (answer,)))

    @property
    def task(self) -> str:
        """Return the name under which its accuracy is reported."""
        return self.sample.task

    @property
    def images(self) -> Sequence[Image.Image]:
        """Return the images of its examples, then its own, opened now."""
        return [picture.open() for picture in _pictures(self.sample)]

    @property
    def question(self) -> str:
        """Return the text behind its images, without choices."""
        return self.sample.question

    @property
    def answer(self) -> str:
        """Return the right answer; of several that people gave, the most common."""
        if self.sample.choices:
            return ", ".join(self.sample.answers)
        return Counter(self.sample.answers).most_common(1)[0][0]

    def messages(self) -> Sequence[Mapping[str, object]]:
        """Return its examples, each with its answer, then one turn: the images, then the question."""
        found = []
        for example in self.sample.examples:
            found += [_turn(example.shown, example.question)]
            found += [{"role": "assistant", "content": [{"type": "text", "text": example.answer}]}]
        return [*found, _turn(self.sample.shown, question_of(self.sample))]

    def is_right(self, reply: str) -> bool:
        """Say whether a reply gets at least half marks by the row's metric; texts that are read must be exact."""
        metric = self.sample.metric if self.sample.metric in GATED else "exact"
        return METRICS[metric].marks([reply], [self.sample])[0] >= RIGHT


@dataclass(frozen=True)
class FileCaption:
    """A captioned image of a file, opened each time it is asked for.

    Attributes:
        file: The image.
        caption: What is true of it.
    """

    file: Picture
    caption: str

    @property
    def image(self) -> Image.Image:
        """Return the image, opened now."""
        return self.file.open()


def read_samples(path: Path, manifest: Manifest, beside: Beside | None = None) -> Evaluation:
    """Return the samples of a file, of the kind that a model's task wants.

    Every image is decoded once here, so that a damaged one is told before hours of work, and none is kept.

    Args:
        path: The file.
        manifest: Of the bundle to be measured; a label becomes a text by its prompt template, as in /v1/classify.
        beside: What a public layout keeps in other places.

    Raises:
        QuantizationError: No such file, no lines, or a line that is no sample; with its number.
    """
    if manifest.reads_pairs:
        rows, folder = _opened(path, beside)
        return _pair_samples(path, rows, folder, sees=manifest.sees)
    if not manifest.embeds:
        return questions_in(path, beside)
    if manifest.image_vectors is not None:
        rows, folder = _opened(path, beside)
        seen = images_of(_encoder_samples(path, [(where, _named(row)) for where, row in rows], folder, SLOT))
        return Evaluation(captions=seen, source=path.name, no_accuracy=READS_NO_TEXTS)
    return shown_in(path, manifest.dual.prompt_template if manifest.dual else SLOT, beside)


def questions_in(path: Path, beside: Beside | None = None) -> Evaluation:
    """Return the samples of a file for a model that answers; arguments and errors as `read_samples`."""
    rows, folder = _opened(path, beside)
    samples = [_question(row, where, folder) for where, row in rows]
    check_one_format(samples)
    return Evaluation(questions=[FileQuestion(sample) for sample in samples], source=path.name)


def shown_in(path: Path, template: str = SLOT, beside: Beside | None = None) -> Evaluation:
    """Return the samples of a file for a model that embeds images and texts; arguments and errors as `read_samples`."""
    rows, folder = _opened(path, beside)
    return _encoder_samples(path, rows, folder, template)


def _opened(path: Path, beside: Beside | None) -> tuple[list[tuple[Place, Row]], Path]:
    """Return a file's rows, and the folder that its images are in."""
    rows = list(rows_of(path, beside or Beside()))
    if not rows:
        raise QuantizationError(f"{path} holds no samples; write one JSON object per line")
    return rows, (beside.images if beside else None) or path.parent


def _pair_samples(path: Path, rows: Sequence[tuple[Place, Row]], folder: Path, *, sees: bool) -> Evaluation:
    samples = [sample_of(row, where, folder, ("caption",) if sees else ("vqa",)) for where, row in rows]
    if sees:
        captions = [FileCaption(_only_image(sample), sample.answers[0]) for sample in samples]
        return Evaluation(captions=captions, source=path.name)
    for sample in samples:
        if sample.examples or _pictures(sample):
            raise QuantizationError(f"{sample.place} shows an image or an example; this model reads two texts")
    return Evaluation(passages=[Passage(each.question, each.answers[0]) for each in samples], source=path.name)


def _question(row: Row, where: Place, folder: Path) -> Sample:
    sample = sample_of(row, where, folder, _ASKED)
    if sample.shown.video or any(example.shown.video for example in sample.examples):
        raise QuantizationError(f"{where} shows a video; the gate reads images, so give frames")
    for picture in _pictures(sample):
        picture.open()
    return sample


def _encoder_samples(path: Path, rows: Sequence[tuple[Place, Row]], folder: Path, template: str) -> Evaluation:
    captions, labelled = [], []
    for where, row in rows:
        if row.keys() == {"image"}:
            raise QuantizationError(f"{where} has an image and nothing to find it by; add a caption or a label")
        for sample in _captions_and_labels(row, where, folder):
            file = _only_image(sample)
            if sample.format == "caption":
                captions.append(FileCaption(file, sample.answers[0]))
            else:
                labelled.append(FileCaption(file, label_text(template, sample.answers[0])))
    candidates = sorted({sample.caption for sample in labelled})
    if len(candidates) == 1:
        raise QuantizationError(
            f"{path}: every label makes {candidates[0]!r}; zero-shot needs two or more to choose from"
        )
    tasks = {LABELS: Labelled(candidates, labelled)} if labelled else {}
    return Evaluation(captions=captions, labelled=tasks, source=path.name)


def _named(row: Row) -> Row:
    """Return a row of an image alone with its file's name for a caption, for a model that reads none."""
    return {**row, "caption": str(row["image"])} if row.keys() == {"image"} else row


def _captions_and_labels(row: Row, where: Place, folder: Path) -> Iterator[Sample]:
    """Yield the caption and the label of an image, of which a row may hold both."""
    of_label = {"label"} & row.keys()
    if of_label and {"caption", "captions"} & row.keys():
        yield sample_of({name: row[name] for name in row.keys() - of_label}, where, folder, _EMBEDDED)
        yield sample_of({"image": row.get("image"), "label": row["label"]}, where, folder, _EMBEDDED)
    else:
        yield sample_of(row, where, folder, _EMBEDDED)


def _only_image(sample: Sample) -> Picture:
    shown = sample.shown
    if len(shown.images) != 1 or shown.frames or shown.video:
        raise QuantizationError(f"{sample.place} shows {len(shown.images)} images; a model that embeds takes one")
    shown.images[0].open()
    return shown.images[0]


def _pictures(sample: Sample) -> list[Picture]:
    shown = [*(example.shown for example in sample.examples), sample.shown]
    return [picture for each in shown for picture in (*each.images, *each.frames)]


def _turn(shown: Shown, text: str) -> Mapping[str, object]:
    images: list[dict[str, str]] = [{"type": "image"} for _ in (*shown.images, *shown.frames)]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}
