"""What each graph of a bundle is fed when the bundle answers samples; the graphs themselves are run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray
from PIL import Image

from bundle.directory import Bundle
from bundle.errors import QuantizationError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.manifest import ComponentName
from bundle.prompt import Placeholder, Turn
from bundle.question import QuestionReader
from quant.quality.evaluation import Caption, Evaluation, Question, turns_of
from quant.quality.pairs import asked_of, feeds_asked
from runtime.embedder_runner import EmbedderRunner
from runtime.encoders import vision_feeds
from runtime.one_embedding import DualEncoderRunner
from runtime.one_request import VisionLanguageRunner
from runtime.rank_runner import runner_of_pairs
from runtime.settings import RuntimeSettings

NUM_SAMPLES = 128
"""Taken of the questions or captions given."""

MOST_TILES = 64
"""Tiles of images that a vision encoder is fed in all: a question may hold 17 of a thousand patches each."""

_DEFAULTS = RuntimeSettings()

Array = NDArray[Any]
Feeds = dict[str, Array]
_Sample = TypeVar("_Sample")


@dataclass(frozen=True)
class FeedSource:
    """A bundle and the samples that it answers.

    Attributes:
        bundle: Opened.
        samples: Questions for a model that answers, captions for one that embeds.
        num_samples: How many of them are taken, spread evenly over the list, so that every task of a sorted one counts.
        settings: Provider and threads.
    """

    bundle: Bundle
    samples: Evaluation
    num_samples: int = NUM_SAMPLES
    settings: RuntimeSettings = _DEFAULTS

    def of(self, component: ComponentName) -> list[Feeds]:
        """Return the inputs of one graph, one run each.

        A run holds no padding: captions are run one at a time, and a text tower that was trained on padded texts
        (SigLIP) reads its padding as text. Images are run tile by tile; the decoder is fed prompts and right answers.

        Raises:
            QuantizationError: No samples of the kind that the model needs, or a graph without linear layers.
        """
        role = self.bundle.manifest.components[component].role
        if role == "vision_encoder":
            return _present(list(self._vision_feeds(component)), "images", "a vision encoder")
        if role == "text_encoder":
            runner = DualEncoderRunner(self.bundle, self.settings)
            return [runner.text_feeds(text) for text in self._texts()]
        if role == "pair_encoder" or (role == "decoder" and self.bundle.manifest.reads_pairs):
            return list(self._pair_feeds())
        if role == "decoder" and self.bundle.manifest.embeds:
            return list(self._embedder_feeds())
        if role == "decoder":
            return list(self._decoder_feeds())
        raise QuantizationError(f"{component} has no inputs to calibrate on; choose a graph with linear layers")

    def _pair_feeds(self) -> Iterator[Feeds]:
        runner = runner_of_pairs(self.bundle, self.settings)
        asked = asked_of(self.samples, sees=self.bundle.manifest.sees)
        for query, document in feeds_asked(spread(asked, self.num_samples // 2)):
            yield runner.feeds(query, document)

    def _decoder_feeds(self) -> Iterator[Feeds]:
        runner = VisionLanguageRunner(self.bundle, self.settings)
        for question in self._questions():
            prompt = runner.prompt(turns_of(question), question.images)
            yield runner.answer_feeds(prompt, runner.answer_ids(question.answer))

    def _embedder_feeds(self) -> Iterator[Feeds]:
        runner = EmbedderRunner(self.bundle, self.settings)
        for text in self._texts():
            yield runner.feeds([Turn("user", (text,))], [])
        for images in self._images():
            yield runner.feeds([Turn("user", (Placeholder.IMAGE,) * len(images))], images)

    def _vision_feeds(self, component: ComponentName) -> Iterator[Feeds]:
        """Yield tiles as the vision encoder reads them, at most `MOST_TILES`, each with the question asked of it."""
        graph, reader = self.bundle.manifest.components[component], QuestionReader.from_bundle(self.bundle)
        groups = list(self._images())
        each = max(1, MOST_TILES // max(1, len(groups)))
        for at, images in enumerate(groups):
            question = None if reader is None or not images else reader.ids(turns_of(self._questions()[at]))
            for tile in self._tiles(at, images, each):
                yield vision_feeds(graph, tile[None], question)

    def _tiles(self, at: int, images: Sequence[Image.Image], each: int) -> Iterator[Array]:
        """Yield [3, height, width] of so many tiles of the images of sample number `at`."""
        spec = ImageSpec.read(self.bundle.path(PREPROCESSOR))
        tiles = [tile for image in images for tile in spec.among(len(images)).cut(image)]
        first = at % max(1, len(tiles))  # another place in every image: a corner, the middle, the whole made small
        for pixels in spec.groups(spread(tiles[first:] + tiles[:first], each)):
            yield from pixels

    def _images(self) -> Iterator[Sequence[Image.Image]]:
        """Yield the images of each sample."""
        manifest = self.bundle.manifest
        if not (manifest.embeds or manifest.reads_pairs):
            yield from (question.images for question in self._questions())
        else:
            yield from ([sample.image] for sample in self._captions())

    def _questions(self) -> list[Question]:
        return _present(spread(self.samples.questions, self.num_samples), "questions", "a vision-language model")

    def _texts(self) -> list[str]:
        texts = [*(sample.caption for sample in self.samples.captions), *self.samples.texts]
        return _present(spread(texts, self.num_samples), "captions", "a dual encoder")

    def _captions(self) -> list[Caption]:
        return _present(spread(self.samples.captions, self.num_samples), "captions", "a dual encoder")


def shows_images(samples: Evaluation) -> bool:
    """Say whether any sample has an image; none is opened."""
    asked = (turn.parts for question in samples.questions for turn in turns_of(question))
    return bool(samples.captions) or any(Placeholder.IMAGE in parts for parts in asked)


def spread(samples: Sequence[_Sample], most: int) -> list[_Sample]:
    """Return at most so many samples at even distances, in their order."""
    taken = min(len(samples), most)
    return [samples[at * len(samples) // taken] for at in range(taken)]


def _present(samples: list[_Sample], kind: str, model: str) -> list[_Sample]:
    if not samples:
        raise QuantizationError(f"the samples hold no {kind}, which {model} is calibrated on")
    return samples
