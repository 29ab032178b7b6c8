"""VQA accuracy: a reply is as right as people agree with it (Antol et al. 2015, section 3; evaluation of VQA v2).

Of ten answers, each is left out once; among the other nine, three that say the same make a reply wholly right. Texts
are made alike first: numbers as digits, articles and punctuation away, apostrophes put into contractions. The published
script leaves that out where all ten answers are the same; here it is always done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

from quant.evaluation.sample import Sample

_ENOUGH = 3
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll let's ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
    somebody'd somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`,?!:]""")


def _spellings(word: str) -> Iterator[str]:
    """Yield a contraction without some of its apostrophes, or without any."""
    marks = [place for place, letter in enumerate(word) if letter == "'"]
    for num in range(1, len(marks) + 1):
        for dropped in combinations(marks, num):
            yield "".join(letter for place, letter in enumerate(word) if place not in dropped)


_CONTRACTIONS = {spelt.lower(): word.lower() for word in _CONTRACTED.split() for spelt in _spellings(word)}


def soft_vqa(reply: str, sample: Sample) -> float:
    """Return the mean of min(1, equal others / 3) over every answer left out; of one answer, whether they are equal."""
    said = alike(reply)
    answers = [alike(answer) for answer in sample.answers]
    if len(answers) == 1:
        return float(said == answers[0])
    num_equal = answers.count(said)
    marks = [min(1.0, (num_equal - (answer == said)) / _ENOUGH) for answer in answers]
    return sum(marks) / len(marks)


def alike(text: str) -> str:
    """Return a text as the evaluation of VQA compares it."""
    text = _COMMA_IN_NUMBER.sub("", " ".join(text.split()).lower())
    text = _PERIOD.sub("", _PUNCTUATION.sub(" ", text))
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
