from __future__ import annotations

import pytest

from bundle.zero_shot import label_text


@pytest.mark.parametrize(
    ("template", "label", "expected"),
    [
        ("a photo of {}", "a cat", "a photo of a cat"),
        ("{}, or more of {}", "it", "it, or more of it"),
        ("a photo of {}", "{x} and {0}", "a photo of {x} and {0}"),
        ("a photo of {}", "{}", "a photo of {}"),
        ("{name} of {}", "a } or a {", "{name} of a } or a {"),
        ("{{}}", "set", "{set}"),
        ("%s {} \\1", "%d", "%s %d \\1"),
    ],
)
def test_a_label_stands_in_every_slot_and_other_braces_are_letters(template: str, label: str, expected: str) -> None:
    assert label_text(template, label) == expected
