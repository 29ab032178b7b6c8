"""Training conversations about pictures and photographs, packed as a model's chat template writes them.

One sequence holds the images and several questions; each question sees the images and itself only, as if it stood
alone. Where the text comes before the image, the first question with its answer is part of what all others see, as
earlier turns are.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable

from reference import photographs
from reference.batches import VISUAL_TOKENS, Batch, Sequence, batched
from reference.enquiries import ORDINALS, Enquiry, a, enquiries, picture_for
from reference.pictures import TRAINING, Picture
from reference.wordings import worded

IMAGE_BLOCK = "<fake_token_around_image><global-img>" + "<image>" * VISUAL_TOKENS + "<fake_token_around_image>"


@dataclasses.dataclass(frozen=True)
class Template:
    """How a chat template writes a conversation.

    Attributes:
        start: What every prompt begins with, up to the first image.
        is_start_apart: The model computes the start once by itself; sequences are packed without it.
        text_gap: Between the start and a text that comes first.
        reply: Between question and answer.
        answer_gap: Begins an answer, learnt with it.
        end: After an answer, learnt with it.
        turn: Between an answer's end and the next question.
    """

    start: str
    is_start_apart: bool
    text_gap: str
    reply: str
    answer_gap: str
    end: str
    turn: str


REAL = Template(
    start="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n",
    is_start_apart=True,
    text_gap="",
    reply="<|im_end|>\n<|im_start|>assistant\n",
    answer_gap="",
    end="<|im_end|>",
    turn="\n<|im_start|>user\n",
)
"""SmolLM2's."""
SMALL = Template(
    start="<|im_start|>User:",
    is_start_apart=False,
    text_gap=" ",
    reply="<end_of_utterance>\nAssistant:",
    answer_gap=" ",
    end="<end_of_utterance>",
    turn="\nUser: ",
)
"""SmolVLM's, which the small reference model has."""
KIND_WEIGHTS = {
    "colour": 12, "shape": 12, "count": 14, "exist": 10, "relation": 12, "where": 8, "text": 8, "digit": 6,
    "describe": 18, "greeting": 2,
}  # fmt: skip
"""Of questions, and of the pictures that are made for them."""
_PHOTOGRAPH_SHARE = 0.12
_SEVERAL_SHARE = 0.03
_TEXT_FIRST_SHARE = 0.25

_SPELT = re.compile(r"( ?[A-Z2-9])(?=[A-Z2-9])|(?<=[A-Z2-9])([A-Z2-9])")
"""Letters of words in capitals: they are learnt one token each, or the decoder would have to know how words are cut."""

Encoder = Callable[[str], list[int]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one sequence is about.

    Attributes:
        shown: Pictures, or indices into `PHOTOGRAPHS`.
        seed: Of what is drawn at random when a photograph is cropped.
        asked: Questions.
        is_text_first: The first question comes before the images.
    """

    shown: tuple[Picture | int, ...]
    seed: int
    asked: tuple[Enquiry, ...]
    is_text_first: bool


def sample(seed: int, num_questions: int) -> Sample:
    """Return a training sample.

    Args:
        seed: One of `TRAINING_SEEDS`.
        num_questions: At most so many; fewer where there is no more to ask.
    """
    rng = random.Random(seed)
    is_text_first = rng.random() < _TEXT_FIRST_SHARE
    draw = rng.random()
    if draw < _PHOTOGRAPH_SHARE:
        index = rng.randrange(len(photographs.PHOTOGRAPHS))
        found = [photographs.enquiry(index, rng, is_held_out=False) for _ in range(2 * num_questions)]
        asked = list({e.answer: e for e in found}.values())[:num_questions]
        return Sample((index,), seed, tuple(asked), is_text_first)
    if draw < _PHOTOGRAPH_SHARE + _SEVERAL_SHARE:
        return _several(rng, seed)
    while True:
        kind = rng.choices(list(KIND_WEIGHTS), weights=list(KIND_WEIGHTS.values()))[0]
        picture = picture_for(kind, rng, TRAINING)
        asked = list(enquiries(picture, rng, KIND_WEIGHTS, num_questions))
        if asked:
            return Sample((picture,), seed, tuple(asked), is_text_first)


def _several(rng: random.Random, seed: int) -> Sample:
    """Return two or three pictures and questions about which of them shows what."""
    while True:
        pictures = tuple(picture_for("shape", rng, TRAINING) for _ in range(rng.choice((2, 2, 3))))
        asked = [e for e in (which(pictures, rng, is_held_out=False) for _ in range(4)) if e is not None]
        if asked:
            return Sample(pictures, seed, tuple({e.answer: e for e in asked}.values()), is_text_first=False)


def which(pictures: tuple[Picture, ...], rng: random.Random, *, is_held_out: bool) -> Enquiry | None:
    """Ask which of the pictures shows a shape, or return None where several do."""
    at = rng.randrange(len(pictures))
    if not pictures[at].shapes:
        return None
    item = rng.choice(pictures[at].shapes)
    if sum(any((s.name, s.colour) == (item.name, item.colour) for s in p.shapes) for p in pictures) != 1:
        return None
    question = worded("which", rng, is_held_out=is_held_out, thing=f"{a(item.colour)} {item.name}")
    answer = f"The {ORDINALS[at]} picture has {a(item.colour)} {item.name}."
    return Enquiry("which", question, answer, (ORDINALS[at],), ORDINALS)


def spelt(text: str, encode: Encoder) -> list[int]:
    """Return a text's tokens, each letter of a word in capitals by itself."""
    pieces = [piece for piece in _SPELT.split(text) if piece]
    return [token for piece in pieces for token in encode(piece)]


class _Writer:
    """Puts the sequence of one sample together, text by text."""

    def __init__(self, encode: Encoder) -> None:
        """Begin with nothing."""
        self._encode = encode
        self.sequence = Sequence()

    def add(self, text: str, segment: int, position: int) -> int:
        """Add a text that is not learnt from a position on; return the position after it."""
        return self.sequence.add(self._encode(text), segment, position)

    def add_answer(self, text: str, segment: int, position: int, kind: str) -> int:
        """Add a text that is learnt."""
        tokens, start = spelt(text, self._encode), len(self.sequence.tokens)
        self.sequence.learnt.append((kind, start, start + len(tokens)))
        return self.sequence.add(tokens, segment, position)


def _sequence(sample: Sample, template: Template, encode: Encoder, max_tokens: int) -> Sequence:
    writer, asked = _Writer(encode), sample.asked
    images = IMAGE_BLOCK * len(sample.shown)
    position = 0 if template.is_start_apart else writer.add(template.start, 0, 0)
    if sample.is_text_first:
        first, asked = asked[0], asked[1:]
        position = writer.add(f"{template.text_gap}{first.question}{images}{template.reply}", 0, position)
        position = writer.add_answer(f"{template.answer_gap}{first.answer}{template.end}", 0, position, first.kind)
        shared_end = writer.add(template.turn, 0, position)
    else:
        shared_end = writer.add(images, 0, position)
    for number, enquiry in enumerate(asked, start=1):
        question = f"{enquiry.question}{template.reply}"
        answer = f"{template.answer_gap}{enquiry.answer}{template.end}"
        if len(writer.sequence.tokens) + len(encode(question)) + len(spelt(answer, encode)) > max_tokens:
            break
        position = writer.add(question, number, shared_end)
        writer.add_answer(answer, number, position, enquiry.kind)
    return writer.sequence


def pack(samples: list[Sample], template: Template, encode: Encoder, max_tokens: int) -> Batch:
    """Return one batch of samples, each with as many of its questions as fit in `max_tokens`."""
    return batched([_sequence(s, template, encode, max_tokens) for s in samples])
