"""Training conversations about pictures and photographs, packed as a model's chat template writes them.

One sequence holds the images and several questions; each question sees the images and itself only, as if it stood
alone. Earlier turns are part of what all of them see: a question behind the images or before them, or a greeting.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from reference import photographs
from reference.batches import VISUAL_TOKENS, Batch, Sequence, batched
from reference.drawing import SHAPES
from reference.enquiries import ASKERS, ORDINALS, Asker, Enquiry, a, enquiries, part, picture_for, placed, plural
from reference.pictures import COLOURS, TRAINING, Picture
from reference.wordings import uncapped, worded

IMAGE_BLOCK = "<fake_token_around_image><global-img>" + "<image>" * VISUAL_TOKENS + "<fake_token_around_image>"


@dataclasses.dataclass(frozen=True)
class Template:
    """How a chat template writes a conversation.

    Attributes:
        start: What every prompt begins with, up to the first image.
        is_start_apart: The model computes the start once by itself; sequences are packed without it.
        text_gap: Before a turn's text where no image stands before it.
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
    turn="\nUser:",
)
"""SmolVLM's, which the small reference model has."""
KIND_WEIGHTS = {
    "colour": 12, "shape": 12, "count": 14, "exist": 10, "relation": 12, "where": 8, "text": 8, "digit": 6,
    "describe": 18, "greeting": 2,
}  # fmt: skip
"""Of questions, and of the pictures that are made for them."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """What samples are about, as shares of them.

    Attributes:
        photograph: A photograph.
        several: Two or three pictures.
        no_image: None at all.
        text_first: The first question comes before the image.
        earlier: Of the others, one question and its answer come before the rest.
        greeted: Of all with images, a greeting and its answer come before these.
        pictures: Kinds of questions that single pictures are made for, by weight.
        kinds: Kinds of questions that are asked about them, by weight.
    """

    photograph: float = 0.12
    several: float = 0.03
    no_image: float = 0.0
    text_first: float = 0.25
    earlier: float = 0.0
    greeted: float = 0.0
    pictures: Mapping[str, int] = dataclasses.field(default_factory=lambda: KIND_WEIGHTS)
    kinds: Mapping[str, int] = dataclasses.field(default_factory=lambda: KIND_WEIGHTS)


REAL_MIX = Mix()
"""For a decoder that is frozen, and knows how to converse."""
SMALL_MIX = Mix(
    photograph=0.1,
    several=0.1,
    no_image=0.05,
    earlier=0.3,
    greeted=0.06,
    pictures=KIND_WEIGHTS | {"relation": 24},
    kinds=KIND_WEIGHTS | {"relation": 30, "where": 20},
)
"""For a decoder that knows nothing else."""
READING_MIX = Mix(
    photograph=0.0,
    several=0.0,
    pictures={"text": 3, "digit": 1},
    kinds={"text": 8, "digit": 8, "colour": 1, "describe": 2},
)
"""Words and digits, for the same: a picture has one word and many shapes, so that few letters are learnt otherwise."""
PLACES_MIX = Mix(
    photograph=0.0, several=0.0, pictures={"relation": 1}, kinds={"relation": 12, "where": 5, "count": 2, "describe": 1}
)
"""Where shapes stand, for the same: of all that is asked it is learnt last, and hardly ever from a few questions."""

_GREETING_SHARE = 0.5  # of what is said where no picture is shown
_OF_ONE = ("colour", "shape", "count", "exist", "where", "relation", "describe")
NO_IMAGE = "I see no picture yet. Please show me one."

_SPELT = re.compile(r"( ?[A-Z2-9])(?=[A-Z2-9])|(?<=[A-Z2-9])([A-Z2-9])")
"""Letters of words in capitals: they are learnt one token each, or the decoder would have to know how words are cut."""

Encoder = Callable[[str], list[int]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one sequence is about.

    Attributes:
        shown: Pictures, or indices into `PHOTOGRAPHS`.
        seed: Of what is drawn at random when a photograph is cropped.
        asked: Questions, each of which sees what comes before and nothing of the others.
        before: Earlier turns.
        is_text_first: The first of them comes before the images.
        greeting: A turn before all images, or None.
    """

    shown: tuple[Picture | int, ...]
    seed: int
    asked: tuple[Enquiry, ...]
    before: tuple[Enquiry, ...] = ()
    is_text_first: bool = False
    greeting: Enquiry | None = None


def sample(seed: int, num_questions: int, mix: Mix = REAL_MIX) -> Sample:
    """Return a training sample.

    Args:
        seed: One of `TRAINING_SEEDS`.
        num_questions: At most so many; fewer where there is no more to ask.
        mix: What samples are about.
    """
    rng = random.Random(seed)
    draw = rng.random()
    if draw < mix.no_image:
        said = {e.question: e for e in (unseen(rng, is_held_out=False) for _ in range(num_questions))}
        return Sample((), seed, tuple(said.values()))
    draw -= mix.no_image
    if draw < mix.photograph:
        index = rng.randrange(len(photographs.PHOTOGRAPHS))
        found = _distinct(photographs.enquiry(index, rng, is_held_out=False) for _ in range(2 * num_questions))
        return _with_turns(Sample((index,), seed, found[:num_questions]), rng, mix)
    if draw < mix.photograph + mix.several:
        return _several(rng, seed, num_questions, mix)
    while True:
        kind = rng.choices(list(mix.pictures), weights=list(mix.pictures.values()))[0]
        picture = picture_for(kind, rng, TRAINING)
        asked = list(enquiries(picture, rng, mix.kinds, num_questions))
        if asked:
            return _with_turns(Sample((picture,), seed, tuple(asked)), rng, mix)


def _with_turns(drawn: Sample, rng: random.Random, mix: Mix) -> Sample:
    """Return a sample of one image with the turns that come before, as the mix has it."""
    first, rest = drawn.asked[0], drawn.asked[1:]
    if rng.random() < mix.text_first:
        drawn = dataclasses.replace(drawn, asked=rest, before=(first,), is_text_first=True)
    elif rng.random() < mix.earlier and rest:
        picture = drawn.shown[0]
        pair = follow_up(picture, rng, is_held_out=False) if isinstance(picture, Picture) else None
        before, rest = (pair[0], (pair[1], *rest)) if pair else (first, rest)
        drawn = dataclasses.replace(drawn, asked=rest, before=(before,))
    if rng.random() < mix.greeted:
        return dataclasses.replace(drawn, greeting=unseen(rng, is_held_out=False))
    return drawn


def _several(rng: random.Random, seed: int, num_questions: int, mix: Mix) -> Sample:
    """Return two or three pictures and questions about which of them shows what, and about one of them."""
    while True:
        pictures = tuple(picture_for("shape", rng, TRAINING) for _ in range(rng.choice((2, 2, 3))))
        asked = [e for e in (which(pictures, rng, is_held_out=False) for _ in range(4)) if e is not None]
        if mix.earlier:  # what a frozen decoder is not taught
            more = (of_one(pictures, rng, is_held_out=False) for _ in range(num_questions))
            asked += [enquiry for enquiry in more if enquiry is not None]
        if asked:
            return Sample(pictures, seed, _distinct(asked)[:num_questions])


def _distinct(asked: Iterable[Enquiry]) -> tuple[Enquiry, ...]:
    """Return those with different answers, the last of each."""
    return tuple({e.answer: e for e in asked}.values())


def unseen(rng: random.Random, *, is_held_out: bool) -> Enquiry:
    """Greet, or ask about a picture where none is shown."""
    nothing = Picture((64, 64), (), "plain", ((0, 0, 0), (0, 0, 0)), "train")
    if rng.random() < _GREETING_SHARE:
        return Asker(nothing, rng, is_held_out).greeting()
    words = {"name": rng.choice(SHAPES), "other": rng.choice(SHAPES), "colour": rng.choice(list(COLOURS))}
    words |= {"plural": plural(rng.choice(SHAPES)), "thing": f"{a(rng.choice(list(COLOURS)))} {rng.choice(SHAPES)}"}
    kind = rng.choice(("colour", "only_colour", "shape", "only_shape", "count", "count_some", "exist", "side", "where",
                       "text", "digit", "describe", "describe", "describe"))  # fmt: skip
    return Enquiry("no image", worded(kind, rng, is_held_out=is_held_out, **words), NO_IMAGE, ("no picture",))


def of_one(pictures: tuple[Picture, ...], rng: random.Random, *, is_held_out: bool) -> Enquiry | None:
    """Ask about one of several pictures, or return None where a kind of question does not suit it."""
    at = rng.randrange(len(pictures))
    asked = ASKERS[rng.choice(_OF_ONE)](Asker(pictures[at], rng, is_held_out))
    if asked is None:
        return None
    question = worded("of_one", rng, is_held_out=is_held_out, ordinal=ORDINALS[at], question=uncapped(asked.question))
    return dataclasses.replace(asked, kind="of one", question=question)


def follow_up(picture: Picture, rng: random.Random, *, is_held_out: bool) -> tuple[Enquiry, Enquiry] | None:
    """Ask about a shape, and then about "it"; None where no shape stands alone."""
    asker = Asker(picture, rng, is_held_out)
    found = [(item, part(item)) for item, _ in asker.unique() if sum(s.name == item.name for s in picture.shapes) == 1]
    found = [(item, place) for item, place in found if sum(s.colour == item.colour for s in picture.shapes) == 1]
    if not found or len(picture.shapes) != len(picture.items):
        return None
    item, place = rng.choice(found)
    colour = Enquiry("colour", asker.worded("colour", name=item.name), f"The {item.name} is {item.colour}.",
                     (item.colour,), tuple(COLOURS))  # fmt: skip
    shape = Enquiry("shape", asker.worded("shape", colour=item.colour), f"It is {a(item.colour)} {item.name}.",
                    (item.name,), SHAPES)  # fmt: skip
    its = [("its_colour", shape, colour)]
    if place is not None:
        where = Enquiry("where", "", *placed(item.name, place))
        its += [("its_place", first, where) for first in (shape, colour)]
    kind, first, second = rng.choice(its)
    return first, dataclasses.replace(second, kind="it", question=asker.worded(kind))


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

    def add_answer(self, text: str, segment: int, position: int, asked: Enquiry) -> int:
        """Add a text that is learnt."""
        tokens, start = spelt(text, self._encode), len(self.sequence.tokens)
        self.sequence.learnt.append((asked.kind, start, start + len(tokens)))
        self.sequence.deciding |= {start + at for at in self._deciding(text, asked)}
        return self.sequence.add(tokens, segment, position)

    def _deciding(self, text: str, asked: Enquiry) -> Iterator[int]:
        """Yield which tokens of an answer say its keys, the last place of each."""
        for key in asked.keys:
            before, found, _ = text.rpartition(f" {key}")
            if found:
                first = len(spelt(before, self._encode))
                yield from range(first, first + len(spelt(found, self._encode)))

    def add_turn(self, prompt: str, turn: Enquiry, template: Template, position: int) -> int:
        """Add an earlier turn, which all see: a prompt and the answer, which is learnt."""
        answer = f"{template.answer_gap}{turn.answer}{template.end}"
        return self.add_answer(answer, 0, self.add(prompt, 0, position), turn)


def _sequence(sample: Sample, template: Template, encode: Encoder, max_tokens: int) -> Sequence:
    writer, images = _Writer(encode), IMAGE_BLOCK * len(sample.shown)
    position = 0 if template.is_start_apart else writer.add(template.start, 0, 0)
    opening = ""
    if sample.greeting is not None:
        prompt = f"{template.text_gap}{sample.greeting.question}{template.reply}"
        position = writer.add_turn(prompt, sample.greeting, template, position)
        opening = template.turn
    gap = template.text_gap
    if images and not sample.is_text_first:
        opening, gap = opening + images, ""
    for number, turn in enumerate(sample.before):
        behind = images if sample.is_text_first and number == 0 else ""
        position = writer.add_turn(f"{opening}{gap}{turn.question}{behind}{template.reply}", turn, template, position)
        opening, gap = template.turn, template.text_gap
    shared_end = writer.add(opening, 0, position)
    for number, enquiry in enumerate(sample.asked, start=1):
        question = f"{gap}{enquiry.question}{template.reply}"
        answer = f"{template.answer_gap}{enquiry.answer}{template.end}"
        if len(writer.sequence.tokens) + len(encode(question)) + len(spelt(answer, encode)) > max_tokens:
            break
        position = writer.add(question, number, shared_end)
        writer.add_answer(answer, number, position, enquiry)
    return writer.sequence


def pack(samples: list[Sample], template: Template, encode: Encoder, max_tokens: int) -> Batch:
    """Return one batch of samples, each with as many of its questions as fit in `max_tokens`."""
    return batched([_sequence(s, template, encode, max_tokens) for s in samples])
