"""Which of several choices a reply takes: by its letter, or by its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quant.evaluation.sample import LETTERS, Sample
from quant.evaluation.scorers.exact import normal

_ALONE = re.compile(r"[\s(\[*\"']*([A-Za-z])[\s)\]*.:,\"']*")
_BEFORE_TEXT = re.compile(r"[\s(\[*]*([A-Z])[)\].:][\s*]")
_ANNOUNCED = re.compile(r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(\[*\"']*([A-Z])(?![A-Za-z'])")
_LIST = re.compile(r"[\s(\[]*[A-Za-z](?:[)\].]?\s*(?:,|;|&|\band\b|\s)\s*[(\[]?[A-Za-z])*[\s)\].]*")


def choice(reply: str, sample: Sample) -> float:
    """Return 1 where a reply takes the right choice and, of several right ones, all and no other; else 0."""
    return float(chosen(reply, sample.choices, takes_several=len(sample.answers) > 1) == set(sample.answers))


def is_unread(reply: str, sample: Sample) -> float:
    """Return 1 where no choice can be read out of a reply, or more than one, else 0."""
    return float(not chosen(reply, sample.choices, takes_several=len(sample.answers) > 1))


def chosen(reply: str, choices: Sequence[str], *, takes_several: bool = False) -> set[str]:
    """Return the letters that a reply takes; none where it cannot be told.

    In this order: the letter alone ("B", "(b)."), before its text ("B. a cat"), behind a word that announces it ("the
    answer is B"), the text of a choice, and the only choice whose text occurs among the words. "A cat" is no letter.
    """
    letters = LETTERS[: len(choices)]
    if takes_several and _LIST.fullmatch(reply):
        return {each.upper() for each in re.findall(r"\b[A-Za-z]\b", reply)} & set(letters)
    for found in (_ALONE.fullmatch(reply), _BEFORE_TEXT.match(reply)):
        if found and found[1].upper() in letters:
            return {found[1].upper()}
    announced = {letter for letter in _ANNOUNCED.findall(reply) if letter in letters}
    if len(announced) == 1:
        return announced
    return _by_text(reply, choices)


def _by_text(reply: str, choices: Sequence[str]) -> set[str]:
    said, texts = normal(reply), [normal(text) for text in choices]
    if said in texts:
        return {LETTERS[texts.index(said)]}
    found = [text for text in texts if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said)]
    # "red" in "dark red" tells nothing of "red" where both are choices.
    longest = [text for text in found if not any(text != other and text in other for other in found)]
    return {LETTERS[texts.index(longest[0])]} if len(longest) == 1 else set()
