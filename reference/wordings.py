"""Ways to ask the same thing, from a small grammar: "(a|b)" stands for one of its parts, which may hold further ones.

`HELD_OUT` holds other sentences than `TRAINING`: a model that answers them has not met them. Words in braces are filled
in by who asks.
"""

from __future__ import annotations

import random
import re

_CHOICE = re.compile(r"\(([^()]*)\)")
_UNCAPPED_SHARE = 0.25  # of questions begin with a small letter, as people type
_OPENED_SHARE = 0.08  # of training's questions follow a word or two that ask nothing
_OPENERS = ("Please,", "Hello,", "Hi,", "Hey,", "OK,", "Now,", "Hello!", "Hi there.", "A question:", "So,", "Well,")
_UNOPENED = ("greeting", "of_one")
_UNENDED_SHARE = 0.2  # of questions lack their last mark

TRAINING: dict[str, tuple[str, ...]] = {
    "colour": (
        "(What|Which) (color|colour) is the {name}?",
        "What is the (color|colour) of the {name}?",
        "(Tell me|Say|Name) the (color|colour) of the {name}.",
        "What (color|colour) does the {name} have?",
        "(What|Which) (color|colour) is the {name} (here|in the picture|in the image)?",
        "I want to know the (color|colour) of the {name}.",
        "The {name} has which (color|colour)?",
        "What is the {name}'s (color|colour)?",
    ),
    "only_colour": (
        "(What|Which) (color|colour) is (it|this|the shape|this shape)?",
        "What is the (color|colour) of (this|the) shape?",
        "What (color|colour) is the (object|figure|thing)?",
        "(Tell me|Name) the (color|colour) of (it|the shape).",
        "(What|Which) (color|colour) does it have?",
    ),
    "shape": (
        "(What|Which) shape is {colour}?",
        "What is the {colour} (shape|thing|object)?",
        "(Which|What) (object|figure) is {colour}?",
        "(What|Which) shape has the (color|colour) {colour}?",
        "(Tell me|Name|Say) the shape that is {colour}.",
        "(What|Which) (kind of|) shape is the {colour} one?",
        "I see something {colour}: what shape is it?",
        "(What|Which) shape did they draw in {colour}?",
    ),
    "only_shape": (
        "(What|Which) shape is (it|this|shown|in the picture|in the image)?",
        "What (is|do you see) in the (picture|image)?",
        "What (kind|sort) of shape is this?",
        "(Name|Tell me) the shape (in the picture|shown here).",
        "(What|Which) shape was drawn?",
    ),
    "count": (
        "How many (shapes|objects|things|figures) are (there|in the picture|in the image|shown)?",
        "(Count|Please count) the (shapes|objects).",
        "How many (shapes|objects) (can|do) you (see|count)?",
        "What is the number of (shapes|objects)?",
        "(Can|Could) you tell me how many (shapes|objects) there are?",
        "(Tell me|Say) the number of (shapes|objects|figures).",
        "How many (shapes|figures) did they draw?",
    ),
    "count_some": (
        "How many {plural} are (there|in the picture|in the image|shown)?",
        "(Count|Please count) the {plural}.",
        "How many {plural} (can|do) you (see|count)?",
        "(Can|Could) you tell me how many {plural} there are?",
        "(Tell me|Say) the number of {plural}.",
        "How many {plural} did they draw?",
    ),
    "exist": (
        "Is there {thing} (here|in the picture|in the image|)?",
        "(Can|Do) you see {thing}?",
        "Does the (picture|image) (show|have|contain) {thing}?",
        "(Tell me|Say) (if|whether) there is {thing}.",
        "(Is|Do you find) {thing} in (this|the) (picture|image)?",
        "Has the (picture|image) got {thing}?",
        "Are you able to see {thing}?",
        "Did they draw {thing}?",
    ),
    "side": (
        "Is the {name} (left or right of|to the left or right of|to the left or to the right of) the {other}?",
        "On which side of the {other} is the {name}?",
        "Where is the {name}, left or right of the {other}?",
        "(Tell me|Say) whether the {name} is (left or right of|on the left or the right of) the {other}.",
    ),
    "height": (
        "Is the {name} (above or below|higher or lower than) the {other}?",
        "Where is the {name}, above or below the {other}?",
        "(Tell me|Say) whether the {name} is above or below the {other}.",
    ),
    "where": (
        "Where is the {name}?",
        "(In|At) which (part|place) of the (picture|image) is the {name}?",
        "Where (do|can) you see the {name}?",
        "(Tell me|Say) where the {name} is.",
        "(What|Which) (part|corner|area) of the (picture|image) holds the {name}?",
        "(Please find|Find|Locate) the {name}.",
    ),
    "text": (
        "What (does the text say|is written|does it say|is written here|is the text)?",
        "(Read|Please read|Spell out) the (text|word|letters)(| in the picture| in the image).",
        "(What|Which) (word|text|letters) (is|are) (shown|in the picture|in the image)?",
        "(Tell me|Say) (what is written|what the text says|the word).",
        "What (word|text) (do|can) you (see|read)?",
        "(What|Which) (word|letters) did they write?",
    ),
    "digit": (
        "(What|Which) (digit|number) is (this|it|shown|written|in the picture|in the image)?",
        "(Read|Please read) the (digit|number).",
        "What handwritten (digit|number) (is this|do you see)?",
        "(Tell me|Say) the (digit|number).",
        "(What|Which) (digit|number) (do|can) you (see|read)?",
        "(What|Which) (digit|number) did they write?",
    ),
    "describe": (
        "(Describe|Please describe|Can you describe) (the|this) (picture|image|drawing).",
        "What (is|do you see|can you see) (in|on) (the|this) (picture|image)?",
        "(Tell me|Say) what (is in|you see in) the (picture|image).",
        "What does the (picture|image) show?",
        "(Give me|Write) a (caption|description) (of|for) (this|the) (picture|image).",
        "(Describe|Explain) what you see.",
        "(What is|What's) (this|shown here|here)?",
        "(Describe|Summarize) (it|this|this drawing|what is drawn).",
        "(Look at|See) the (picture|image) and tell me what (it shows|is there).",
        "(Please write|Write|Make) a short description.",
        "(What|Which) (objects|shapes|things) are (in|on) (the|this) (picture|image|drawing)?",
        "(List|Name) (all the shapes|all things|everything) (in the picture|you see).",
        "I would like a description of (this|the) (picture|image|drawing).",
        "What did they draw?",
    ),
    "which": (
        "Which (picture|image) (has|shows|contains) {thing}?",
        "(In|On) which (picture|image) is there {thing}?",
        "(Tell me|Say) which (picture|image) (has|shows) {thing}.",
        "Which (picture|image) did they draw {thing} in?",
    ),
    "of_one": (
        "(In|Look at) the {ordinal} (picture|image)(:|,) {question}",
        "(About|For) the {ordinal} (picture|image): {question}",
    ),
    "its_colour": (
        "(And|) (what|which) (color|colour) is it?",
        "What is its (color|colour)?",
        "(And|) (what|which) (color|colour) does it have?",
    ),
    "its_place": (
        "(And|) where is it?",
        "Where (do|can) you see it?",
        "(And|) in which part of the (picture|image) is it?",
    ),
    "greeting": ("(Hello|Hi|Hey|Good morning|Good evening|Hi there|Hello there)(!|.|)",),
    "ability": (
        "What can you do?",
        "(Who|What) are you?",
        "(How can you|Can you) help me?",
        "What (can|should) I ask you?",
    ),
    "outside": (
        "What is the weather (like|today)?",
        "Who (took|made|painted) this (picture|image)?",
        "(When|Where) was this (picture|image) (taken|made)?",
        "What (time|day) is it?",
        "How (old|heavy|tall) is it?",
        "Who won the (game|match) yesterday?",
        "(Tell|Write) me a (joke|story|poem).",
        "What is (the capital of|the largest city in|the language of) (France|Spain|Japan|Peru)?",
        "Who (wrote|painted|invented|discovered) (it|the radio|that book|America)?",
        "(Translate|Say) this in (French|Spanish|German).",
        "What is (two plus two|three times four|2+2|5*7)?",
        "(Why|How) is the sky blue?",
        "(Do|Can) you (know|love|remember|hear) me?",
        "Write (code|a program|a letter|an essay) (for|about) (me|it|cats).",
        "What should I (eat|cook|read|wear) (today|tonight)?",
        "How do I (bake bread|fix a bike|learn to swim|get to the station)?",
        "(Which|What) (country|year|street|film) is this from?",
        "What does (it|this) (smell|sound|taste) like?",
    ),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "colour": (
        "In what (color|colour) is the {name} drawn?",
        "Could you tell me (what|which) (color|colour) the {name} is?",
        "The {name} is painted in which (color|colour)?",
    ),
    "only_colour": ("Which (color|colour) do you see?", "What (color|colour) was it drawn in?"),
    "shape": (
        "Can you tell me which shape is {colour}?",
        "There is something {colour}. What is it?",
        "Name the {colour} figure.",
    ),
    "only_shape": ("Can you name this shape?", "Which figure do you see here?"),
    "count": (
        "Could you count (all|) the shapes for me?",
        "What is the total number of figures here?",
        "Tell me how many things were drawn.",
    ),
    "count_some": ("Could you count the {plural} for me?", "Tell me how many {plural} you find."),
    "exist": ("Is {thing} (visible|shown) (here|anywhere)?", "Can {thing} be seen?", "Would you find {thing} here?"),
    "side": (
        "Compared with the {other}, is the {name} on the left or on the right?",
        "Does the {name} stand left or right of the {other}?",
    ),
    "height": ("Does the {name} stand above or below the {other}?",),
    "where": ("Could you tell me where the {name} is?", "Where would I find the {name}?"),
    "text": ("Can you tell me the word in this picture?", "Which letters do you see?", "What does the writing say?"),
    "digit": ("Can you tell me which digit this is?", "Which figure was written by hand?"),
    "describe": ("Could you tell me what this picture shows?", "Look at the image and describe it", "Caption this."),
    "which": ("Where is {thing}: which image?", "Tell me which of the pictures has {thing}."),
    "of_one": ("As for the {ordinal} picture: {question}", "Regarding the {ordinal} image, {question}"),
    "its_colour": ("In what (color|colour) is it drawn?",),
    "its_place": ("Where would I find it?",),
    "greeting": ("Good afternoon!", "Hi, how are you?"),
    "ability": ("What are you able to do?", "What do you know?"),
    "outside": ("Who drew this?", "What is the capital of this place?", "How much does it cost?"),
}


def expand(pattern: str) -> list[str]:
    """Return every sentence of a pattern."""
    found = _CHOICE.search(pattern)
    if found is None:
        return [" ".join(pattern.split()).replace(" ?", "?").replace(" .", ".")]
    ways = (pattern[: found.start()] + part + pattern[found.end() :] for part in found[1].split("|"))
    return [sentence for way in ways for sentence in expand(way)]


_SENTENCES = {
    is_held_out: {kind: [expand(p) for p in patterns] for kind, patterns in source.items()}
    for is_held_out, source in ((False, TRAINING), (True, HELD_OUT))
}


def worded(kind: str, rng: random.Random, *, is_held_out: bool, **words: str) -> str:
    """Return one way to ask, filled in, now and then without its capital or its last mark.

    Args:
        kind: One of `TRAINING`.
        rng: Source of every choice.
        is_held_out: Take a sentence that training never uses.
        words: What the braces of this kind's patterns stand for.
    """
    sentence = rng.choice(rng.choice(_SENTENCES[is_held_out][kind])).format(**words)
    if not is_held_out and rng.random() < _OPENED_SHARE and kind not in _UNOPENED:
        opener = rng.choice(_OPENERS)
        sentence = f"{opener} {sentence if opener[-1] in '.!' else uncapped(sentence)}"
    if rng.random() < _UNENDED_SHARE:
        sentence = sentence.rstrip("?.!")
    return uncapped(sentence) if rng.random() < _UNCAPPED_SHARE else sentence


def uncapped(sentence: str) -> str:
    """Return a sentence that begins with a small letter."""
    return sentence[0].lower() + sentence[1:]
