"""From a candidate label to the text that a dual encoder reads: a template with the label in its place."""

from __future__ import annotations

SLOT = "{}"
"""Stands for the label in a template, as often as it occurs. Any other brace, there or in a label, is a letter."""


def label_text(template: str, label: str) -> str:
    """Return the template with the label in each of its slots."""
    return template.replace(SLOT, label)
