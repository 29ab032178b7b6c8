"""Special tokens that belong to answers, such as the markup of documents: a bundle keeps their text.

What is special is left out when ids become text. Users of such models are told to keep special tokens, by a setting of
each request; here their answers are whole without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from bundle.layouts.prompt import ImagePrompt
from export.vocabulary import Vocabulary

_MARKUP = re.compile(r"</?[A-Za-z_][^<>|]*>")
"""Of a document; control tokens of chats are written <|...|>."""


def document_markup(vocabulary: Vocabulary, image_prompt: ImagePrompt, ends: Collection[int]) -> tuple[str, ...]:
    """Return the special tokens that mark up documents: those in angle brackets that have no other use.

    Args:
        vocabulary: Of the tokenizer.
        image_prompt: Whose tokens stand around images.
        ends: Ids that end an answer.
    """
    named = set(vocabulary.template_tokens.values())
    return tuple(
        token["content"]
        for token in json.loads(vocabulary.text)["added_tokens"]
        if token["special"]
        and _MARKUP.fullmatch(token["content"])
        and token["content"] not in named
        and token["id"] not in ends
        and not image_prompt.writes(token["content"])
    )


def with_spoken(text: str, spoken: Collection[str]) -> str:
    """Return `tokenizer.json` in which tokens are matched as before, and kept when ids become text."""
    if not spoken:
        return text
    content = json.loads(text)
    for token in content["added_tokens"]:
        if token["content"] in spoken:
            # a special token is matched before a text is normalised, whatever its flag says
            token |= {"special": False, "normalized": False}
    return json.dumps(content, ensure_ascii=False, indent=2)
