"""What callers must not write into a prompt, and their texts made harmless or marked, to find out where they did."""

from __future__ import annotations

from bundle.layouts.prompt import ImagePrompt
from bundle.text import Tokenizer


def control_tokens(tokenizer: Tokenizer, template: str, image_prompt: ImagePrompt) -> dict[str, int]:
    """Return text and id of every token that callers must not write.

    Special tokens always are; other added tokens where the template or an image's layout writes them (some
    vocabularies add runs of spaces or markup, which are ordinary text), unless callers' texts are how answers begin:
    then a task that the template writes is one that they may write as well.
    """
    return {
        token.text: token.id
        for token in tokenizer.added_tokens
        if token.is_special
        or image_prompt.writes(token.text)
        or (not image_prompt.begins_answers and token.text.strip() and token.text in template)
    }


def blanked(text: str) -> str:
    """Return a harmless text that a template treats alike: empty stays empty, spaces stay spaces."""
    return "x" if text.strip() else text


def marked(text: str, start: str, end: str) -> str:
    """Return the text between marks, which stand inside the whitespace that a template might strip."""
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    return f"{before}{start}{core}{end}{after}"
