"""CIDEr-D of captions, by pycocoevalcap's own implementation, which needs no Java; only the words are cut here.

The published figures cut words by Stanford's PTB tokenizer, which does need Java. Here a text is lower-cased, clitics
are cut off ("don't": do n't, "man's": man 's), and punctuation is dropped, as that one does for plain English captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

from bundle.errors import MissingExtraError
from bundle.extras import install_line
from quant.evaluation.sample import Sample

_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+?(?=n't\b)|[^\W_]+(?:[-.][^\W_]+)*")


def cider(replies: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    """Return CIDEr-D of each reply (Vedantam et al. 2015), between 0 and 10; how rare words are, all references tell.

    Raises:
        MissingExtraError: The library is not installed.
    """
    require_cider()
    from pycocoevalcap.cider.cider import Cider

    references = {place: [words_of(text) for text in sample.answers] for place, sample in enumerate(samples)}
    found = {place: [words_of(reply)] for place, reply in enumerate(replies)}
    _, scores = Cider().compute_score(references, found)
    return [float(score) for score in scores]


def require_cider() -> None:
    """Check that captions can be scored.

    Raises:
        MissingExtraError: The library is not installed.
    """
    if find_spec("pycocoevalcap") is None:
        raise MissingExtraError(f"captions are scored by pycocoevalcap, which is not here: {install_line('captions')}")


def words_of(text: str) -> str:
    """Return the words of a caption with one space between."""
    return " ".join(_WORD.findall(text.lower().replace("\u2019", "'")))
