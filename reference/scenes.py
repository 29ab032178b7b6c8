"""Questions about scenes with short answers: endless for training, fixed sets for evaluation.

`held_out(task, n, seed)` is the stable interface that quality gates use. Needs numpy, Pillow and scikit-learn only.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from PIL import Image

from reference import captions
from reference.drawing import COLOURS, SHAPES
from reference.layout import Scene, Thing, random_text, render, sample_scene
from reference.seeds import calibration_seed, held_out_seed

TASKS = (
    "colour",
    "shape",
    "size",
    "digit",
    "count",
    "relation",
    "text",
    "exist",
    "compare",
    "chat",
    "caption",
    "place",
)
_NTH = ("first", "second", "third")
_PLACE_CELL_PX = 16  # "place" answers in columns and rows of this size, counted from 1
_UNCAPPED_SHARE = 0.2  # of questions begin with a small letter, as people type
_CLEAR_PX = 20  # centres nearer than this along an axis are not asked about


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question and the one right answer."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Example:
    """Images and a conversation about them; the last turn is the one scored, by exact match."""

    task: str
    images: tuple[Image.Image, ...]
    turns: tuple[Turn, ...]

    @property
    def question(self) -> str:
        """Return the question of the last turn."""
        return self.turns[-1].question

    @property
    def answer(self) -> str:
        """Return the right answer to the last turn."""
        return self.turns[-1].answer

    def messages(self) -> list[dict[str, object]]:
        """Return the conversation for a chat template, up to the last question; images come first."""
        messages: list[dict[str, object]] = []
        for i, turn in enumerate(self.turns):
            content: list[dict[str, str]] = [{"type": "image"} for _ in self.images] if i == 0 else []
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": turn.question}]})
            if turn is not self.turns[-1]:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    def is_right(self, reply: str) -> bool:
        """Say whether a model's reply matches the answer, apart from outer spaces and case."""
        return reply.strip().lower() == self.answer.lower()


def held_out(task: str, n: int, seed: int = 0) -> list[Example]:
    """Return n examples of a task from seeds that training never uses; digits from the test split.

    Args:
        task: One of `TASKS`.
        n: How many.
        seed: Which set, 0 to 255; the same seed gives the same examples for ever.

    Raises:
        ValueError: The task is unknown.
    """
    return _examples(task, n, lambda index: held_out_seed(task, seed, index), "test")


def calibration(task: str, n: int) -> list[Example]:
    """Return n examples of a task as training has them, for quantizers to be calibrated on; never held-out ones.

    Raises:
        ValueError: The task is unknown.
    """
    return _examples(task, n, lambda index: calibration_seed(task, index), "train")


def _examples(task: str, n: int, seed_of: Callable[[int], int], digit_split: str) -> list[Example]:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    found: list[Example] = []
    index = 0
    while len(found) < n:
        rng = random.Random(seed_of(index))
        index += 1
        scenes = scenes_for(task, rng, digit_split)
        turns = ask(task, scenes, rng)
        if turns is not None:
            found.append(Example(task, tuple(render(s) for s in scenes), turns))
    return found


def scenes_for(task: str, rng: random.Random, digit_split: str) -> tuple[Scene, ...]:
    """Return the scenes, mostly one, that a question of this task can be asked about."""
    if task == "compare":
        return tuple(sample_scene(rng, rng.randint(1, 3)) for _ in range(2 if rng.random() < 0.75 else 3))
    if task == "text":
        return (sample_scene(rng, rng.randint(0, 2), texts=(random_text(rng),)),)
    if task == "digit":
        return (sample_scene(rng, rng.randint(0, 2), num_digits=1, digit_split=digit_split),)
    if task == "caption":
        return (captions.captioned_scene(rng, digit_split),)
    if task == "count":
        return (
            sample_scene(
                rng, rng.randint(1, 6), palette=rng.choice((1, 2, 2, 3, 8)), shape_pool=rng.choice((1, 2, 2, 3, 8))
            ),
        )
    if task in ("relation", "chat"):
        return (sample_scene(rng, rng.randint(2, 4)),)
    return (sample_scene(rng, rng.randint(1, 5)),)


def ask(task: str, scenes: tuple[Scene, ...], rng: random.Random) -> tuple[Turn, ...] | None:
    """Return a conversation about the scenes, or None where the task has no clear question about them."""
    if task == "compare":
        turn = _compare(scenes, rng)
        return None if turn is None else (turn,)
    if task == "chat":
        return _chat(scenes[0], rng)
    turn = _ASKERS[task](scenes[0], rng)
    return None if turn is None else (turn,)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _colour_word(rng: random.Random) -> str:
    return rng.choice(("color", "colour"))


def _worded(rng: random.Random, *wordings: str) -> str:
    """Return one of the wordings, now and then without its capital."""
    chosen = rng.choice(wordings)
    return chosen[0].lower() + chosen[1:] if rng.random() < _UNCAPPED_SHARE else chosen


def _only(things: list[Thing], field: str) -> list[Thing]:
    """Return the things whose value of a field (or of colour and name for "both") no other thing shares."""
    values = [(t.colour, t.name) if field == "both" else getattr(t, field) for t in things]
    return [t for t, value in zip(things, values, strict=True) if values.count(value) == 1]


def _named(thing: Thing) -> str:
    return f"{thing.colour} {thing.name}"


def _colour(scene: Scene, rng: random.Random) -> Turn | None:
    choices = [(t.name, t.colour) for t in _only(scene.shapes, "name")]
    choices += [(t.kind, t.colour) for t in scene.things if t.kind != "shape"]
    if not choices:
        return None
    name, colour = rng.choice(choices)
    return Turn(
        _worded(rng, f"What {_colour_word(rng)} is the {name}?", f"Which {_colour_word(rng)} is the {name}?"), colour
    )


def _shape(scene: Scene, rng: random.Random) -> Turn | None:
    choices = _only(scene.shapes, "colour")
    if not choices or any(t.kind != "shape" for t in scene.things):
        return None
    thing = rng.choice(choices)
    return Turn(
        _worded(
            rng,
            f"What shape is {thing.colour}?",
            f"Which shape is {thing.colour}?",
            f"What is the {thing.colour} shape?",
        ),
        thing.name,
    )


def _size(scene: Scene, rng: random.Random) -> Turn | None:
    choices = _only(scene.shapes, "both")
    if not choices:
        return None
    thing = rng.choice(choices)
    return Turn(_worded(rng, f"Is the {_named(thing)} small or large?"), thing.size)


def _digit(scene: Scene, rng: random.Random) -> Turn | None:
    digit = scene.first("digit")
    if digit is None:
        return None
    asked = _worded(
        rng, "What digit is this?", "Which digit is written?", "What digit is shown?", "What number is this?"
    )
    return Turn(asked, digit.name)


def _text(scene: Scene, rng: random.Random) -> Turn | None:
    text = scene.first("text")
    if text is None:
        return None
    asked = _worded(rng, "What does the text say?", "Read the text.", "What text is written?", "What is written?")
    return Turn(asked, text.name)


def _count(scene: Scene, rng: random.Random) -> Turn | None:
    shapes = scene.shapes
    if not shapes or len(shapes) != len(scene.things):
        return None
    draw = rng.random()
    if draw < 0.4:
        asked = _worded(
            rng, "How many shapes are there?", "How many objects are there?", "How many shapes are in the image?"
        )
        return Turn(asked, str(len(shapes)))
    thing = rng.choice(shapes)
    is_present = rng.random() < 0.85
    if draw < 0.7:
        colour = thing.colour if is_present else rng.choice(list(COLOURS))
        return Turn(_worded(rng, f"How many {colour} shapes are there?"), str(sum(t.colour == colour for t in shapes)))
    shape = thing.name if is_present else rng.choice(SHAPES)
    return Turn(_worded(rng, f"How many {_plural(shape)} are there?"), str(sum(t.name == shape for t in shapes)))


def _place(scene: Scene, rng: random.Random) -> Turn | None:
    """Ask for the column and row, 1 to 8 each, of a shape's middle: the step before comparing two places."""
    choices = _only(scene.shapes, "both")
    if not choices:
        return None
    thing = rng.choice(choices)
    column, row = (1 + int(centre // _PLACE_CELL_PX) for centre in thing.centre_px)
    return Turn(_worded(rng, f"Where is the {_named(thing)}?"), f"{column} {row}")


def _exist(scene: Scene, rng: random.Random) -> Turn | None:
    shapes = scene.shapes
    if not shapes:
        return None
    colour, shape = rng.choice(shapes).colour, rng.choice(shapes).name
    draw = rng.random()
    if draw < 0.4:
        shape = rng.choice([t for t in shapes if t.colour == colour]).name
    elif draw < 0.6:
        colour = rng.choice(list(COLOURS))
    elif draw < 0.8:
        shape = rng.choice(SHAPES)
    is_there = any(t.colour == colour and t.name == shape for t in shapes)
    return Turn(_worded(rng, f"Is there {_a(colour)} {shape}?"), "yes" if is_there else "no")


def _direction(thing: Thing, other: Thing, axis: int) -> str:
    """Return where `thing` stands as seen from `other` along an axis, or "" when that is not clear."""
    offset = thing.centre_px[axis] - other.centre_px[axis]
    if abs(offset) < _CLEAR_PX:
        return ""
    return (("left of", "right of"), ("above", "below"))[axis][offset > 0]


def _relation(scene: Scene, rng: random.Random) -> Turn | None:
    choices = _only(scene.shapes, "both")
    if len(choices) < 2:
        return None
    thing, other = rng.sample(choices, 2)
    axis = rng.randrange(2)
    direction = _direction(thing, other, axis)
    if not direction:
        return None
    draw = rng.random()
    if draw < 0.4:
        options = ("left or right of", "above or below")[axis]
        return Turn(_worded(rng, f"Is the {_named(thing)} {options} the {_named(other)}?"), direction.split()[0])
    if draw < 0.7:
        asked = rng.choice((("left of", "right of"), ("above", "below"))[axis])
        answer = "yes" if asked == direction else "no"
        return Turn(_worded(rng, f"Is the {_named(thing)} {asked} the {_named(other)}?"), answer)
    return _relation_to_shape(scene, rng, thing, other, axis)


def _relation_to_shape(scene: Scene, rng: random.Random, thing: Thing, other: Thing, axis: int) -> Turn | None:
    direction = _direction(thing, other, axis)
    directions = [_direction(t, other, axis) for t in scene.shapes if t is not other]
    if "" in directions or directions.count(direction) != 1:
        return None
    return Turn(_worded(rng, f"What shape is {direction} the {_named(other)}?"), thing.name)


def _chat(scene: Scene, rng: random.Random) -> tuple[Turn, ...] | None:
    """Return two turns; the second says "it" and means the answer to the first."""
    choices = _only(scene.shapes, "both")
    if len(choices) < 2:
        return None
    thing, other = rng.sample(choices, 2)
    first = _relation_to_shape(scene, rng, thing, other, rng.randrange(2))
    if first is None or thing not in _only(scene.shapes, "name"):
        return None
    if rng.random() < 0.6:
        return first, Turn(_worded(rng, f"What {_colour_word(rng)} is it?"), thing.colour)
    return first, Turn(_worded(rng, "Is it small or large?"), thing.size)


def _compare(scenes: tuple[Scene, ...], rng: random.Random) -> Turn | None:
    at = rng.randrange(len(scenes))
    if not scenes[at].shapes:
        return None
    if rng.random() < 0.5:
        thing = rng.choice(scenes[at].shapes)
        holders = [any(_named(t) == _named(thing) for t in s.shapes) for s in scenes]
        return None if sum(holders) != 1 else Turn(_worded(rng, f"Which image has {_a(_named(thing))}?"), _NTH[at])
    choices = _only(scenes[at].shapes, "name")
    if not choices:
        return None
    thing = rng.choice(choices)
    return Turn(_worded(rng, f"What {_colour_word(rng)} is the {thing.name} in the {_NTH[at]} image?"), thing.colour)


def _caption(scene: Scene, rng: random.Random) -> Turn:
    return Turn(
        _worded(rng, "Describe the image.", "Describe this image.", "What is in the image?"), captions.describe(scene)
    )


_ASKERS = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "digit": _digit,
    "count": _count,
    "relation": _relation,
    "text": _text,
    "exist": _exist,
    "caption": _caption,
    "place": _place,
}
