"""Questions about `pictures` in everyday English, each with a sentence that answers it and what a right reply says."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping

from reference.drawing import SHAPES
from reference.pictures import COLOURS, Item, Looks, Picture, random_word, sample
from reference.wordings import worded

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
MAX_SHAPES = 6
ORDINALS = ("first", "second", "third")
_CLEAR_SHARE = 0.12  # middles nearer than this along an axis are not asked about
_EDGES = (0.36, 0.64)  # where left, middle and right meet
_UNKNOWN = "I only see what is in the picture: its shapes, colors, words and digits."
_ABILITY = "I can describe a picture, name its shapes and colors, count them and read short words."
_PLACES = ("left", "right", "top", "bottom", "middle")
_SIDES = (("left", "right"), ("above", "below"))


@dataclasses.dataclass(frozen=True)
class Enquiry:
    """One question.

    Attributes:
        kind: One of `KINDS`.
        question: As a user types it.
        answer: The sentence that is learnt.
        keys: What a right reply says, in this order.
        others: What a right reply does not say.
    """

    kind: str
    question: str
    answer: str
    keys: tuple[str, ...]
    others: tuple[str, ...] = ()

    def is_right(self, reply: str) -> bool:
        """Say whether a reply says every key, as whole words and in order, and none of the others."""
        said = " ".join(re.findall(r"[a-z0-9]+", reply.lower()))
        wanted = [r"\b" + re.escape(key.lower()) + r"\b" for key in self.keys]
        others = [other for other in self.others if other not in self.keys]
        is_said = re.search(".*".join(wanted), said) is not None
        return is_said and not any(re.search(rf"\b{re.escape(other)}\b", said) for other in others)


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks about one picture."""

    picture: Picture
    rng: random.Random
    is_held_out: bool

    def worded(self, kind: str, **words: str) -> str:
        """Return one way to ask."""
        return worded(kind, self.rng, is_held_out=self.is_held_out, **words)

    def unique(self) -> list[tuple[Item, str]]:
        """Return the shapes that a name picks out, with the shortest such name."""
        shapes, found = self.picture.shapes, []
        for item in shapes:
            full = f"{item.colour} {item.name}"
            if sum(s.name == item.name for s in shapes) == 1:
                found.append((item, item.name if self.rng.random() < 0.5 else full))
            elif sum((s.name, s.colour) == (item.name, item.colour) for s in shapes) == 1:
                found.append((item, full))
        return found

    def colour(self) -> Enquiry | None:
        """Ask for the colour of a shape, a word or a digit."""
        shapes = self.picture.shapes
        named = [(s.name, s.colour) for s in shapes if sum(o.name == s.name for o in shapes) == 1]
        named += [("text" if i.kind == "text" else "digit", i.colour) for i in self.picture.items if i.kind != "shape"]
        if not named:
            return None
        name, colour = self.rng.choice(named)
        is_only = len(self.picture.items) == 1 and self.rng.random() < 0.5 and bool(shapes)
        question = self.worded("only_colour") if is_only else self.worded("colour", name=name)
        return Enquiry("colour", question, f"The {name} is {colour}.", (colour,), tuple(COLOURS))

    def shape(self) -> Enquiry | None:
        """Ask which shape has a colour."""
        shapes = self.picture.shapes
        if not shapes or len(shapes) != len(self.picture.items):
            return None
        singles = [s for s in shapes if sum(o.colour == s.colour for o in shapes) == 1]
        if not singles:
            return None
        item = self.rng.choice(singles)
        is_only = len(shapes) == 1 and self.rng.random() < 0.5
        question = self.worded("only_shape") if is_only else self.worded("shape", colour=item.colour)
        return Enquiry("shape", question, f"It is {a(item.colour)} {item.name}.", (item.name,), SHAPES)

    def count(self) -> Enquiry | None:
        """Ask how many shapes there are, of all, of a colour or of a kind."""
        shapes = self.picture.shapes
        if not shapes or len(shapes) != len(self.picture.items):
            return None
        draw = self.rng.random()
        if draw < 0.45:
            return self._counted(self.worded("count"), len(shapes), "shapes")
        item = self.rng.choice(shapes)
        if draw < 0.7:
            colour = item.colour if self.rng.random() < 0.85 else self.rng.choice(list(COLOURS))
            number, several = sum(s.colour == colour for s in shapes), f"{colour} shapes"
        else:
            name = item.name if self.rng.random() < 0.85 else self.rng.choice(SHAPES)
            number, several = sum(s.name == name for s in shapes), plural(name)
        return self._counted(self.worded("count_some", plural=several), number, several)

    def _counted(self, question: str, number: int, several: str) -> Enquiry:
        singular = several.removesuffix("es") if several == "crosses" else several.removesuffix("s")
        answer = f"There is one {singular}." if number == 1 else f"There are {NUMBERS[number]} {several}."
        return Enquiry("count", question, answer, (NUMBERS[number],), NUMBERS)

    def exist(self) -> Enquiry | None:
        """Ask whether there is a shape of a colour."""
        shapes = self.picture.shapes
        if not shapes:
            return None
        colour, name = self.rng.choice([(s.colour, s.name) for s in shapes])
        if self.rng.random() < 0.5:
            colour, name = self.rng.choice(
                (
                    (self.rng.choice(list(COLOURS)), name),
                    (colour, self.rng.choice(SHAPES)),
                    (colour, self.rng.choice(shapes).name),
                )
            )
        thing = f"{a(colour)} {name}"
        is_there = any((s.colour, s.name) == (colour, name) for s in shapes)
        answer = f"Yes, there is {thing}." if is_there else f"No, there is no {colour} {name}."
        question = self.worded("exist", thing=thing)
        return Enquiry("exist", question, answer, ("yes" if is_there else "no",), ("yes", "no"))

    def relation(self) -> Enquiry | None:
        """Ask whether one shape stands left or right of, or above or below, another."""
        named = self.unique()
        if len(named) < 2:
            return None
        (item, name), (other, other_name) = self.rng.sample(named, 2)
        axis = self.rng.choice((0, 0, 1))
        offset = item.centre[axis] - other.centre[axis]
        if abs(offset) < _CLEAR_SHARE:
            return None
        side = _SIDES[axis][offset > 0]
        question = self.worded(("side", "height")[axis], name=name, other=other_name)
        phrase = f"to the {side} of" if axis == 0 else side
        return Enquiry("relation", question, f"The {name} is {phrase} the {other_name}.", (side,), _SIDES[axis])

    def where(self) -> Enquiry | None:
        """Ask for the part of the picture in which a shape stands."""
        named = self.unique()
        if not named:
            return None
        item, name = self.rng.choice(named)
        place = part(item)
        if place is None:
            return None
        return Enquiry("where", self.worded("where", name=name), *placed(name, place))

    def text(self) -> Enquiry | None:
        """Ask for the word."""
        item = self.picture.first("text")
        if item is None:
            return None
        return Enquiry("text", self.worded("text"), f"The text says {item.name}.", (item.name,))

    def digit(self) -> Enquiry | None:
        """Ask for the handwritten digit."""
        item = self.picture.first("digit")
        if item is None:
            return None
        others = tuple("0123456789")
        return Enquiry("digit", self.worded("digit"), f"The digit is {item.name}.", (item.name,), others)

    def describe(self) -> Enquiry:
        """Ask what is shown; the answer names shapes in the order of `SHAPES`, then what is written."""
        phrases = listed(self.picture)
        whole = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
        keys = tuple(phrase.split(" ", 1)[1] for phrase in phrases)
        return Enquiry("describe", self.worded("describe"), f"The picture shows {whole}.", keys)

    def greeting(self) -> Enquiry:
        """Greet, ask what the model can do, or ask what no picture tells."""
        kind = self.rng.choice(("greeting", "ability", "outside"))
        answers = {"greeting": f"Hello! {_ABILITY}", "ability": _ABILITY, "outside": _UNKNOWN}
        key = "I only see" if kind == "outside" else "I can describe"
        return Enquiry("greeting", self.worded(kind), answers[kind], (key,))


def placed(name: str, place: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the answer that tells the part of the picture in which a shape stands, its keys and what it leaves out."""
    return f"The {name} is at the {place}.", (place,), tuple(w for w in _PLACES if w not in place.split())


def a(word: str) -> str:
    """Return a word behind its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plural(name: str) -> str:
    """Return a shape's name in the plural."""
    return name + ("es" if name == "cross" else "s")


def part(item: Item) -> str | None:
    """Return the part of the picture in which a thing stands, such as "top left", or None where two parts meet."""
    across, down = item.centre
    if any(abs(share - edge) < 0.04 for share in (across, down) for edge in _EDGES):
        return None
    column = ("left", "", "right")[(across > _EDGES[0]) + (across > _EDGES[1])]
    row = ("top", "", "bottom")[(down > _EDGES[0]) + (down > _EDGES[1])]
    return f"{row} {column}".strip() or "middle"


def listed(picture: Picture) -> list[str]:
    """Return what a picture shows, such as "a red star", "two blue rings", "three hearts" or "the red text STOP"."""
    found = []
    for name in SHAPES:
        same = [item for item in picture.shapes if item.name == name]
        colours = {item.colour for item in same}
        if len(same) == 1:
            found.append(f"{a(same[0].colour)} {name}")
        elif same:
            colour = f"{colours.pop()} " if len(colours) == 1 else ""
            found.append(f"{NUMBERS[len(same)]} {colour}{plural(name)}")
    found += [f"the {item.colour} {item.kind} {item.name}" for item in picture.items if item.kind != "shape"]
    return found


ASKERS: dict[str, Callable[[Asker], Enquiry | None]] = {
    "colour": Asker.colour,
    "shape": Asker.shape,
    "count": Asker.count,
    "exist": Asker.exist,
    "relation": Asker.relation,
    "where": Asker.where,
    "text": Asker.text,
    "digit": Asker.digit,
    "describe": Asker.describe,
    "greeting": Asker.greeting,
}
KINDS = tuple(ASKERS)


def picture_for(kind: str, rng: random.Random, looks: Looks) -> Picture:
    """Return a picture that a question of this kind can mostly be asked about, with at least one thing in it."""
    while True:
        picture = _picture_for(kind, rng, looks)
        if picture.items:
            return picture


def _picture_for(kind: str, rng: random.Random, looks: Looks) -> Picture:
    if kind == "text":
        return sample(rng, looks, words=(random_word(rng, looks),), num_shapes=rng.choice((0, 0, 1, 2)))
    if kind == "digit":
        return sample(rng, looks, num_digits=1, num_shapes=rng.choice((0, 0, 1, 2)))
    if kind == "count":
        few = (1, 2, 2, 3, 8)
        return sample(
            rng, looks, num_shapes=rng.randint(1, MAX_SHAPES), palette=rng.choice(few), shape_pool=rng.choice(few)
        )
    if kind == "relation":
        return sample(rng, looks, num_shapes=rng.randint(2, 4))
    return sample(rng, looks, num_shapes=rng.choice((1, 1, 2, 2, 3, 4, 5)))


def enquiries(picture: Picture, rng: random.Random, kinds: Mapping[str, int], num: int) -> Iterator[Enquiry]:
    """Yield up to `num` different training questions about a picture, of kinds drawn by weight."""
    asker, asked = Asker(picture, rng, is_held_out=False), set()
    for kind in rng.choices(list(kinds), weights=list(kinds.values()), k=3 * num):
        enquiry = ASKERS[kind](asker)
        if enquiry is None or (enquiry.kind, enquiry.answer) in asked:
            continue
        asked.add((enquiry.kind, enquiry.answer))
        yield enquiry
        if len(asked) == num:
            return
