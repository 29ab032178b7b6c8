"""Training pairs for the dual encoder: scenes, captions, and captions that are almost true."""

from __future__ import annotations

import dataclasses
import random

from reference.captions import captioned_scene, describe
from reference.drawing import CHARACTERS, COLOURS, SHAPES
from reference.layout import Scene, Thing, sample_scene

_SHORT_SHARE = 0.35  # of pairs: one shape and a caption that leaves something out


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a short caption says of one shape; "" leaves it open. No fields at all: a whole description."""

    size: str = ""
    colour: str = ""
    shape: str = ""

    def text(self) -> str:
        """Return the claim in words, such as "a red shape"."""
        words = [word for word in (self.size, self.colour, self.shape or "shape") if word]
        return " ".join(["a", *words])

    def is_true_of(self, scene: Scene) -> bool:
        """Say whether some shape in the scene fits."""
        return any(
            self.size in ("", t.size) and self.colour in ("", t.colour) and self.shape in ("", t.name)
            for t in scene.shapes
        )


@dataclasses.dataclass(frozen=True)
class Pair:
    """A scene, a caption true of it, one almost true, and what the caption claims when it is short."""

    scene: Scene
    caption: str
    near_miss: str
    claim: Claim | None


def pair(seed: int) -> Pair:
    """Return the training pair of a seed."""
    rng = random.Random(seed)
    if rng.random() < _SHORT_SHARE:
        scene = sample_scene(rng, 1)
        claim = _claim(scene.things[0], rng)
        return Pair(scene, claim.text(), _near_claim(claim, rng).text(), claim)
    scene = captioned_scene(rng, "train")
    return Pair(scene, describe(scene), describe(_near_scene(scene, rng)), None)


def _claim(thing: Thing, rng: random.Random) -> Claim:
    draw = rng.random()
    if draw < 0.3:
        return Claim(shape=thing.name)
    if draw < 0.6:
        return Claim(colour=thing.colour)
    if draw < 0.8:
        return Claim(colour=thing.colour, shape=thing.name)
    return Claim(size=thing.size, colour=thing.colour, shape=thing.name)


def _near_claim(claim: Claim, rng: random.Random) -> Claim:
    if claim.shape and (not claim.colour or rng.random() < 0.5):
        return dataclasses.replace(claim, shape=_other(claim.shape, SHAPES, rng))
    return dataclasses.replace(claim, colour=_other(claim.colour, tuple(COLOURS), rng))


def _other(value: str, values: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice([v for v in values if v != value])


def _near_scene(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with one thing changed, or the names or colours of two exchanged."""
    things = list(scene.things)
    i, j = rng.randrange(len(things)), rng.randrange(len(things))
    field = rng.choice(("colour", "name", "size"))
    is_swap = things[i].kind == things[j].kind and getattr(things[i], field) != getattr(things[j], field)
    if is_swap and rng.random() < 0.6:
        first, second = getattr(things[i], field), getattr(things[j], field)
        things[i] = dataclasses.replace(things[i], **{field: second})
        things[j] = dataclasses.replace(things[j], **{field: first})
    else:
        things[i] = _changed(things[i], field, rng)
    return dataclasses.replace(scene, things=tuple(things))


def _changed(thing: Thing, field: str, rng: random.Random) -> Thing:
    if field == "colour" or (field == "size" and thing.kind != "shape"):
        return dataclasses.replace(thing, colour=_other(thing.colour, tuple(COLOURS), rng))
    if field == "size":
        return dataclasses.replace(thing, size=_other(thing.size, ("small", "large"), rng))
    if thing.kind == "digit":
        return dataclasses.replace(thing, name=_other(thing.name, tuple("0123456789"), rng))
    if thing.kind == "text":
        at = rng.randrange(len(thing.name))
        character = _other(thing.name[at], tuple(CHARACTERS), rng)
        return dataclasses.replace(thing, name=thing.name[:at] + character + thing.name[at + 1 :])
    return dataclasses.replace(thing, name=_other(thing.name, SHAPES, rng))
