"""What a `tokenizer.json` may ask of the tokenizers library, which does it in Rust where nothing can stop it.

A chain of steps that each double a text doubles it as often as there are steps: fifty of `ByteLevel`, or of a `Replace`
of "a" by "aa", end a process. Published tokenizers have up to six steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CHAINS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
_MOST_STEPS = 64
_MOST_GROWTH = 1 << 12
"""Characters that a chain may make of one; the largest published one, XLM-RoBERTa's, may make 256."""
_GROWTH: Mapping[str, int] = {"ByteLevel": 4, "NFKD": 18, "NFKC": 18, "NFD": 4, "NFC": 3, "Precompiled": 64}
"""The most that a step makes of one character: bytes of UTF-8, Unicode's longest decompositions, a map of its own."""
_MOST_WORD_CHARACTERS = 1000
"""WordPiece looks up every part of a word: for one of a million letters, for days."""
_MOST_TOKENS_AROUND = 256


def check_tokenizer(content: Any) -> None:
    """Check that a parsed `tokenizer.json` makes no more of a text than published ones do.

    Raises:
        ValueError: It may.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__} where an object is expected")
    for chain in _CHAINS:
        steps = list(_steps(content.get(chain)))
        if len(steps) > _MOST_STEPS:
            raise ValueError(f"its {chain} has {len(steps)} steps; at most {_MOST_STEPS} are run")
        growth = 1
        for step in steps:
            growth *= _growth(step)
            _check_around(step)
        if growth > _MOST_GROWTH:
            raise ValueError(f"its {chain} may make {growth} characters of one; at most {_MOST_GROWTH}")
    model = content.get("model")
    longest = model.get("max_input_chars_per_word", 0) if isinstance(model, Mapping) else 0
    if isinstance(longest, int) and longest > _MOST_WORD_CHARACTERS:
        raise ValueError(f"max_input_chars_per_word is {longest}; at most {_MOST_WORD_CHARACTERS}")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every step of a chain, those inside sequences too."""
    left = [part]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            if "type" in each:
                yield each
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)


def _growth(step: Mapping[str, Any]) -> int:
    """Return how many characters a step makes of one at most."""
    kind = str(step.get("type"))
    if kind == "Replace":
        pattern = step.get("pattern")
        is_plain = isinstance(pattern, Mapping) and bool(pattern.get("String"))
        return max(len(str(step.get("content", ""))) + (not is_plain), 1)  # a regular expression may match nothing
    if kind in ("Prepend", "Metaspace"):
        return 1 + len(str(step.get("prepend", "▁")))
    return _GROWTH.get(kind, 1)


def _check_around(step: Mapping[str, Any]) -> None:
    """Check how many tokens a step puts around every text."""
    special = step.get("special_tokens")
    parts = [step.get("single"), step.get("pair")]
    if isinstance(special, Mapping):
        parts += [token.get("ids") for token in special.values() if isinstance(token, Mapping)]
    if any(isinstance(part, list) and len(part) > _MOST_TOKENS_AROUND for part in parts):
        raise ValueError(f"its post_processor puts more than {_MOST_TOKENS_AROUND} tokens around a text")
