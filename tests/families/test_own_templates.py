"""Families whose authors write conversations in code: their templates hold, whatever the checkpoint's files say."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.chat_template import CHAT_TEMPLATE, INPUT_TEMPLATE
from export.architectures import load_family
from export.checkpoint import Checkpoint


@pytest.mark.parametrize("family", ["internvl_chat", "internvl_vit", "wepoints"])
def test_conversations_are_the_authors_and_nothing_else_is_written(family: str, sample_of: Any) -> None:
    sample = sample_of(family, 0)
    directory = sample.bundle().directory
    own = load_family(Checkpoint.open(sample.checkpoint).config).own_template()
    assert (directory / CHAT_TEMPLATE).read_text() == own
    assert not (directory / INPUT_TEMPLATE).exists()
